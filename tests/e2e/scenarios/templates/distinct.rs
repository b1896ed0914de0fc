//! Clones of one template share nothing that should be their own.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use casemate_e2e::{Bundle, Container, DEBIAN, Host, Scenario, images, scenarios, templates, wait};
use serde_json::json;

use super::PATIENCE;

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![fifty_are_distinct]
        .into_iter()
        .map(|scenario| scenario.limit(Duration::from_secs(600)))
        .collect()
}

/// Clones, and how many of them begin at once.
const CLONES: usize = 50;
const AT_ONCE: usize = 4;

/// How far a clone's clock may be from the host's.
const CLOCK: Duration = Duration::from_millis(50);

/// First of all in a container: prints what nobody else may get. The last line is
/// the first sequence number of a connection, which is the same in all of them by
/// its addresses and ports, with the time at which the kernel chose it: random
/// part plus time in units of 64 ns (net/core/secure_seq.c). A raw socket gets a
/// copy of the packet.
const LOOK: &str = r#"
    use Socket; use Time::HiRes qw(clock_gettime CLOCK_REALTIME);
    $| = 1;
    sub line { open(my $f, "<", $_[0]) or die "$_[0]: $!"; my $l = <$f>; chomp $l; $l }
    sub random { my $b = "\0" x 32; syscall(318, $b, 32, 0) == 32 or die; unpack("H*", $b) }
    print "first ", random(), "\n";
    print "boot_id ", line("/proc/sys/kernel/random/boot_id"), "\n";
    print "uuid ", line("/proc/sys/kernel/random/uuid"), "\n" for 1 .. 2;
    open(my $u, "<:raw", "/dev/urandom") or die; read($u, my $b, 32) == 32 or die;
    print "stream ", unpack("H*", $b), "\n";
    for (1 .. 4) {
        my $pid = open(my $child, "-|") // die;
        if (!$pid) { print random(); exit }
        print "key ", <$child>, "\n";
    }
    my $here = inet_aton("127.0.0.1");
    socket(my $raw, AF_INET, SOCK_RAW, 6) or die "raw: $!";
    socket(my $s, AF_INET, SOCK_STREAM, 6) or die;
    bind($s, pack_sockaddr_in(40000, $here)) or die "bind: $!";
    my $before = clock_gettime(CLOCK_REALTIME);
    connect($s, pack_sockaddr_in(40001, $here));
    my $after = clock_gettime(CLOCK_REALTIME);
    recv($raw, my $packet, 200, 0) // die;
    my ($from, $to, $sequence, $flags) = unpack("x20 n n N x5 C", $packet);
    die "not a SYN" unless $from == 40000 && $to == 40001 && ($flags & 0x12) == 2;
    printf "tcp %u %.0f\n", $sequence, ($before + $after) / 2 * 1e9;
    sleep 1000"#;

/// What one clone has told.
struct Told {
    /// What must be nobody else's.
    secrets: Vec<String>,
    /// The sequence number less what time has added to it.
    sequence: u32,
    origin: String,
}

fn fifty_are_distinct(host: &Host) -> Result<()> {
    let number = AtomicUsize::new(0);
    let all = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        while number.fetch_add(1, Ordering::Relaxed) < CLONES {
            let told = one(host)?;
            all.lock()
                .map_err(|_| anyhow!("a thread panicked"))?
                .push(told);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let all = all.into_inner()?;
    ensure!(all.len() == CLONES);
    let origins: BTreeSet<&str> = all.iter().map(|told| told.origin.as_str()).collect();
    ensure!(origins.len() == 1, "of several templates: {origins:?}");
    let mut seen = BTreeSet::new();
    for secret in all.iter().flat_map(|told| &told.secrets) {
        ensure!(seen.insert(secret), "twice: {secret}");
    }
    sequences_have_nothing_in_common(&all)
}

/// Those of guests with the same secret would be equal to within the time that was
/// measured, some milliseconds; those of others are that close by chance, one pair
/// in ten runs.
fn sequences_have_nothing_in_common(all: &[Told]) -> Result<()> {
    const CLOSE: u32 = 1 << 17;
    let mut close = 0;
    for (place, one) in all.iter().enumerate() {
        for other in &all[place + 1..] {
            let apart = one.sequence.wrapping_sub(other.sequence);
            close += usize::from(apart.min(apart.wrapping_neg()) < CLOSE);
        }
    }
    ensure!(close < 5, "{close} pairs of sequence numbers are alike");
    Ok(())
}

fn one(host: &Host) -> Result<Told> {
    let root = images::unpacked(host, DEBIAN)?;
    let bundle = Bundle::new(host, &["perl", "-e", LOOK])?.edit(|spec| {
        spec["root"] = json!({"path": root, "readonly": true});
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(["CAP_NET_RAW", "CAP_KILL"]);
        }
    })?;
    let mut container = Container::run(host, &bundle)?;
    let text = wait::until("what a clone has to tell", PATIENCE, || {
        let text = String::from_utf8(container.streams().written())?;
        Ok(text
            .contains("tcp ")
            .then_some(text)
            .filter(|text| text.ends_with('\n')))
    })
    .with_context(|| String::from_utf8_lossy(&container.streams().complained()).into_owned())?;
    let origin = templates::origin(host, &[], &container.id)?;
    clock_is_right(host, &container.id)?;
    container.delete_force()?;
    let (secrets, tcp): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| !line.starts_with("tcp "));
    ensure!(secrets.len() == 9, "{text}");
    let words: Vec<u64> = tcp[0]
        .split(' ')
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [sequence, at_ns] = words[..] else {
        anyhow::bail!("{text}");
    };
    Ok(Told {
        secrets: secrets
            .iter()
            .filter_map(|line| Some(line.split_once(' ')?.1.to_owned()))
            .collect(),
        sequence: (sequence as u32).wrapping_sub((at_ns >> 6) as u32),
        origin: origin.context("a machine that booted")?,
    })
}

fn clock_is_right(host: &Host, id: &str) -> Result<()> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    let before = now()?;
    let told = host.oci(&["exec", id, "date", "+%s%N"]).run()?.ok()?;
    let after = now()?;
    let guest = Duration::from_nanos(told.text().parse()?);
    ensure!(
        before.saturating_sub(CLOCK) <= guest && guest <= after + CLOCK,
        "the guest has {guest:?}, between {before:?} and {after:?} on the host"
    );
    Ok(())
}
