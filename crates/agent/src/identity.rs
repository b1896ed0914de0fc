//! What makes this VM unlike any other. It may be one of many that were resumed
//! from the same saved state, so nothing of what was drawn or set before that is
//! taken for its own: everything is done anew, and read back, so that the host
//! can tell that it has happened.
//!
//! The random generator comes first, since what follows is drawn from it:
//!
//! * With RNDRESEEDCRNG the kernel throws away its key and every processor's batch
//!   of numbers that were drawn in advance (`base_crng.generation`).
//! * The boot id is drawn at its first reading. Nobody reads it before.
//! * Secrets of the network (`net_secret`, those of its hash tables, of SYN
//!   cookies and the ports' order) are drawn at the first connection that needs
//!   them. A guest that can be saved has made none but vsock's.
//! * A program draws its stack, heap and canary when it is executed. The agent's
//!   own are those of the saved state, as is the key of its hash maps, whose names
//!   the host alone chooses.

use std::{fs, path::Path, time::Duration};

use casemate_linux::entropy;
use casemate_protocol::agent::{Identity, PrepareSandboxRequest};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
    unistd::{gethostname, sethostname},
};

use crate::{
    error::{Doing, Result},
    timeline::now,
};

/// Where the kernel shows the boot id.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where a machine whose root cannot be written to has its id (machine-id(5)).
const MACHINE_ID: &str = "/run/machine-id";

/// Takes on the identity that the host gives; the answer has what can be said of
/// it before the machine is complete. `received_ns` is when the request came
/// (CLOCK_MONOTONIC).
pub(crate) fn assume(request: &PrepareSandboxRequest, received_ns: u64) -> Result<Identity> {
    let mut identity = Identity::new();
    if !request.entropy.is_empty() {
        identity.entropy_bits = entropy::add(&request.entropy).doing(|| "add entropy".into())?;
    }
    // What has passed since the host's clock was read, as far as it is known here.
    step_clock(request.realtime_ns, now() - received_ns)?;
    if !request.hostname.is_empty() {
        sethostname(&request.hostname).doing(|| format!("set hostname {:?}", request.hostname))?;
    }
    if !request.machine_id.is_empty() {
        let line = format!("{}\n", request.machine_id);
        fs::write(MACHINE_ID, line).doing(|| format!("write {MACHINE_ID}"))?;
        identity.machine_id = line_of(Path::new(MACHINE_ID))?;
    }
    identity.boot_id = line_of(Path::new(BOOT_ID))?;
    let hostname = gethostname().doing(|| "get hostname".into())?;
    identity.hostname = hostname.to_string_lossy().into_owned();
    Ok(identity)
}

fn step_clock(realtime_ns: u64, late_ns: u64) -> Result<()> {
    if realtime_ns == 0 {
        return Ok(());
    }
    let time = Duration::from_nanos(realtime_ns.saturating_add(late_ns));
    let time = TimeSpec::from_duration(time);
    clock_settime(ClockId::CLOCK_REALTIME, time).doing(|| "set the clock".into())
}

fn line_of(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).doing(|| format!("read {}", path.display()))?;
    Ok(text.trim_end_matches('\n').to_owned())
}
