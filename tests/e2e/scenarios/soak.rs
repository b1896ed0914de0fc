//! Many operations at random, several at a time: afterwards nothing is left, and what has lived
//! all the time has not grown.
//!
//! The seed decides what every worker does, one after the other; how the workers meet is the
//! machine's affair. A failure names the seed.

mod growth;
mod traces;
mod worker;

use std::env;
use std::process;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use casemate_e2e::{BUSYBOX, Host, Podman, Scenario, scenarios};
use nix::sched::{CloneFlags, unshare};

use growth::Sizes;
use traces::traces;
use worker::Worker;

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![mixed]
        .into_iter()
        .map(|scenario| scenario.limit(Duration::from_secs(1500)))
        .collect()
}

const WORKERS: u64 = 6;

/// A whole number from the environment, or `otherwise`.
fn setting(name: &str, otherwise: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| name.to_owned()),
        Err(_) => Ok(otherwise),
    }
}

/// Another one for every run.
fn any_seed() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok((now.as_nanos() as u64) ^ u64::from(process::id()))
}

fn mixed(host: &Host) -> Result<()> {
    let seed = setting("CASEMATE_E2E_SEED", any_seed()?)?;
    let operations = setting("CASEMATE_E2E_OPERATIONS", 300)?;
    soak(host, seed, operations).with_context(|| format!("again with CASEMATE_E2E_SEED={seed}"))
}

fn soak(host: &Host, seed: u64, operations: u64) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    host.command("ip")
        .args(["link", "set", "lo", "up"])
        .run()?
        .ok()?;
    let podman = Podman::new(host)?;
    // What podman makes for its first container and keeps is no leak.
    let first = ["run", "--rm", "--network=bridge", BUSYBOX, "true"];
    podman.command(first)?.run()?.ok()?;
    let before = traces(host)?;
    let steady = worker::run_detached(host, &podman, "steady")?;
    let each = operations.div_ceil(WORKERS);
    // Whatever comes into being with the first operations is there when sizes are taken.
    let warm = each.div_ceil(3);
    work(host, &podman, &steady, seed, 0..warm)?;
    let sizes = Sizes::of(host, &podman, &steady)?;
    work(host, &podman, &steady, seed, warm..each)?;
    sizes.have_not_grown(host, &podman, &steady)?;
    worker::remove(&podman, &steady)?;
    let after = traces(host)?;
    ensure!(
        before == after,
        "before the first operation:\n{before}\nafter the last one:\n{after}"
    );
    Ok(())
}

/// Does that part of every worker's operations, all workers at a time.
fn work(
    host: &Host,
    podman: &Podman<'_>,
    steady: &str,
    seed: u64,
    part: std::ops::Range<u64>,
) -> Result<()> {
    let begin = Barrier::new(WORKERS as usize);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS)
            .map(|number| {
                let (begin, part) = (&begin, part.clone());
                scope.spawn(move || {
                    begin.wait();
                    let mut worker = Worker::new(host, podman, steady, number);
                    worker.work(seed, part)
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a worker panicked"))??;
        }
        Ok(())
    })
}
