//! What makes a guest unlike any other: what the host asks for, and whether the
//! guest has it. A clone wakes up with the memory of its template, random pool,
//! clock and names included, so nothing is believed that was not read back.

use std::{
    fs::File,
    io::{self, Read},
    time::Duration,
};

use casemate_hypervisor::Size;
use casemate_protocol::agent as message;
use nix::time::{ClockId, clock_gettime};

use crate::agent::printable;

/// Bytes of entropy that a guest gets.
const ENTROPY: usize = 64;

/// Bits that must have been credited: what the kernel calls a seeded generator
/// (drivers/char/random.c, POOL_BITS).
const ENTROPY_BITS: u32 = 256;

/// How far a clock may be beside the time between request and answer.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(20);

/// Memory below 4 MiB is the firmware's.
const FIRMWARE_MIB: u32 = 4;

/// Memory is plugged in steps of 128 MiB, as Linux takes it.
const STEP_MIB: u32 = 128;

/// What a guest is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    hostname: String,
    machine_id: String,
    size: Size,
    cid: u64,
    entropy: Vec<u8>,
    realtime_ns: u64,
}

/// What a guest has not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest is not known to be unlike others: its {what} should be {wanted}, and is {found}"
)]
pub struct Unconfirmed {
    what: &'static str,
    wanted: String,
    found: String,
}

impl Wanted {
    /// A new one.
    ///
    /// # Errors
    /// When the host has no random numbers to give.
    pub(crate) fn new(hostname: &str, size: Size, cid: u64) -> io::Result<Self> {
        let mut random = File::open("/dev/urandom")?;
        let (mut entropy, mut machine_id) = (vec![0; ENTROPY], [0; 16]);
        random.read_exact(&mut entropy)?;
        random.read_exact(&mut machine_id)?;
        let machine_id = machine_id.iter().map(|byte| format!("{byte:02x}"));
        Ok(Self {
            hostname: hostname.to_owned(),
            machine_id: machine_id.collect(),
            size,
            cid,
            entropy,
            realtime_ns: realtime_ns(),
        })
    }

    /// As the agent is told; what else it has to know is the caller's to add.
    pub(crate) fn request(&self) -> message::PrepareSandboxRequest {
        message::PrepareSandboxRequest {
            hostname: self.hostname.clone(),
            realtime_ns: self.realtime_ns,
            entropy: self.entropy.clone(),
            machine_id: self.machine_id.clone(),
            vcpus: self.size.vcpus,
            memory_mib: self.size.memory_mib,
            ..Default::default()
        }
    }

    /// Whether the guest says, by `answered_ns` of the host's clock, that it is so.
    ///
    /// # Errors
    /// The first thing that is missing or different.
    pub(crate) fn confirm(
        &self,
        identity: Option<&message::Identity>,
        answered_ns: u64,
    ) -> Result<(), Unconfirmed> {
        let nothing = message::Identity::default();
        let found = identity.unwrap_or(&nothing);
        let bits = format!("{ENTROPY_BITS} bits or more");
        let enough = found.entropy_bits >= ENTROPY_BITS;
        check(enough, "entropy", &bits, &found.entropy_bits)?;
        check(is_uuid(&found.boot_id), "boot id", "a UUID", &found.boot_id)?;
        let same = found.machine_id == self.machine_id;
        check(same, "machine id", &self.machine_id, &found.machine_id)?;
        let same = found.hostname == self.hostname;
        check(same, "host name", &self.hostname, &found.hostname)?;
        let tolerance = CLOCK_TOLERANCE.as_nanos() as u64;
        let earliest = self.realtime_ns.saturating_sub(tolerance);
        let latest = answered_ns.saturating_add(tolerance);
        let on_time = (earliest..=latest).contains(&found.realtime_ns);
        let between = format!("between {earliest} and {latest} ns");
        check(on_time, "clock", &between, &found.realtime_ns)?;
        check(found.cid == self.cid, "context id", self.cid, &found.cid)?;
        let Size { vcpus, memory_mib } = self.size;
        let same = found.vcpus == vcpus;
        check(same, "number of processors", vcpus, &found.vcpus)?;
        let least = memory_mib.saturating_sub(FIRMWARE_MIB);
        let most = memory_mib.saturating_add(STEP_MIB - 1);
        let has_it = (least..=most).contains(&found.memory_mib);
        check(has_it, "memory in MiB", memory_mib, &found.memory_mib)
    }
}

fn check(
    is_so: bool,
    what: &'static str,
    wanted: impl ToString,
    found: &impl ToString,
) -> Result<(), Unconfirmed> {
    if is_so {
        return Ok(());
    }
    let found = match printable(&found.to_string()) {
        empty if empty.is_empty() => "nothing".to_owned(),
        text => text.chars().take(80).collect(),
    };
    let wanted = wanted.to_string();
    Err(Unconfirmed {
        what,
        wanted,
        found,
    })
}

/// As the kernel writes it (RFC 9562, section 4), and not the one of zeros.
fn is_uuid(text: &str) -> bool {
    let mut lengths = text.split('-').map(str::len);
    let shape = [8, 4, 4, 4, 12]
        .into_iter()
        .all(|n| lengths.next() == Some(n));
    let digits = text.bytes().filter(|byte| *byte != b'-');
    shape
        && lengths.next().is_none()
        && digits.clone().all(|byte| byte.is_ascii_hexdigit())
        && !digits.clone().all(|byte| byte == b'0')
}

/// Nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_REALTIME).expect("every Linux has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        vcpus: 2,
        memory_mib: 256,
    };
    const ANSWERED: u64 = 5_000_000_000;

    fn wanted() -> Wanted {
        Wanted {
            realtime_ns: 4_000_000_000,
            ..Wanted::new("web", SIZE, 77).unwrap()
        }
    }

    fn confirmed(wanted: &Wanted) -> message::Identity {
        message::Identity {
            entropy_bits: 512,
            boot_id: "6f2c1d6e-7d2a-4b58-9a6e-0c5a3b1f9e42".to_owned(),
            machine_id: wanted.machine_id.clone(),
            hostname: "web".to_owned(),
            realtime_ns: 4_100_000_000,
            cid: 77,
            vcpus: 2,
            memory_mib: 253,
            ..Default::default()
        }
    }

    type Change = fn(&mut message::Identity);

    #[test]
    fn a_guest_that_confirms_everything_is_believed() {
        let wanted = wanted();
        let whole = confirmed(&wanted);
        assert_eq!(wanted.confirm(Some(&whole), ANSWERED), Ok(()));
        let changes: [Change; 5] = [
            |identity| identity.entropy_bits = 256,
            |identity| identity.memory_mib = 256,
            |identity| identity.memory_mib = 383,
            |identity| identity.realtime_ns = ANSWERED,
            |identity| identity.realtime_ns = 4_000_000_000,
        ];
        for change in changes {
            let mut identity = whole.clone();
            change(&mut identity);
            assert_eq!(wanted.confirm(Some(&identity), ANSWERED), Ok(()));
        }
    }

    #[test]
    fn whatever_is_missing_or_different_is_named() {
        let wanted = wanted();
        let cases: [(&str, Change); 19] = [
            ("entropy", |identity| identity.entropy_bits = 0),
            ("entropy", |identity| identity.entropy_bits = 255),
            ("boot id", |identity| identity.boot_id.clear()),
            ("boot id", |identity| identity.boot_id.push('0')),
            ("boot id", |identity| {
                identity.boot_id = "00000000-0000-0000-0000-000000000000".to_owned();
            }),
            ("machine id", |identity| identity.machine_id.clear()),
            ("machine id", |identity| {
                identity.machine_id = "0".repeat(32)
            }),
            ("host name", |identity| identity.hostname.clear()),
            ("host name", |identity| {
                identity.hostname = "(none)".to_owned()
            }),
            ("clock", |identity| identity.realtime_ns = 0),
            ("clock", |identity| identity.realtime_ns = 3_900_000_000),
            ("clock", |identity| identity.realtime_ns = 5_100_000_000),
            ("context id", |identity| identity.cid = 0),
            ("context id", |identity| identity.cid = 3),
            ("number of processors", |identity| identity.vcpus = 0),
            ("number of processors", |identity| identity.vcpus = 1),
            ("memory in MiB", |identity| identity.memory_mib = 0),
            ("memory in MiB", |identity| identity.memory_mib = 251),
            ("memory in MiB", |identity| identity.memory_mib = 384),
        ];
        for (what, change) in cases {
            let mut identity = confirmed(&wanted);
            change(&mut identity);
            let unconfirmed = wanted.confirm(Some(&identity), ANSWERED).unwrap_err();
            assert_eq!(unconfirmed.what, what);
        }
        let nothing = wanted.confirm(None, ANSWERED).unwrap_err();
        assert_eq!(
            nothing.to_string(),
            "the guest is not known to be unlike others: its entropy should be 256 bits or more, \
             and is 0"
        );
    }

    #[test]
    fn no_two_guests_are_asked_to_be_the_same() {
        let [one, other] = [wanted(), wanted()];
        assert_ne!(one.machine_id, other.machine_id);
        assert_ne!(one.entropy, other.entropy);
        let request = one.request();
        assert_eq!(request.machine_id.len(), 32);
        assert_eq!((request.vcpus, request.memory_mib), (2, 256));
        assert_eq!(request.entropy.len(), ENTROPY);
    }

    #[test]
    fn what_a_guest_says_is_shown_in_one_short_line() {
        let wanted = wanted();
        let mut identity = confirmed(&wanted);
        identity.hostname = "x\n\u{1b}[2J".repeat(100);
        let text = wanted
            .confirm(Some(&identity), ANSWERED)
            .unwrap_err()
            .to_string();
        assert!(
            text.len() < 300 && !text.contains(char::is_control),
            "{text}"
        );
    }
}
