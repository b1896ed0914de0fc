//! A sandbox in which nothing happens costs nothing.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::processes::{self, Process};
use casemate_e2e::{Bundle, Container, Host, Scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let scenario = Scenario::new("sleeps", sleeps);
    vec![scenario.only_vm("runc leaves no process beside the container's")]
}

/// How long nothing must happen.
const WATCHED: Duration = Duration::from_secs(5);

/// How often that is tried: the guest may have a last thing to do after a start.
const TIMES: usize = 4;

/// How often a second the VMM may wake up. The guest's kernel has a few timers,
/// each of which wakes QEMU's threads some four times; as it comes, it would be
/// thirty times.
const VMM_WAKE_UPS: f64 = 10.0;

/// No thread of our own processes wakes up, and QEMU hardly.
fn sleeps(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    let mut woken = Ok(());
    for _ in 0..TIMES {
        woken = nothing_happens();
        if woken.is_ok() {
            break;
        }
    }
    woken?;
    container.delete_force()
}

fn nothing_happens() -> Result<()> {
    let vmm = || Ok::<u64, anyhow::Error>(wake_ups(is_vmm)?.values().sum());
    let (before, vmm_before) = (wake_ups(|process| !is_vmm(process))?, vmm()?);
    thread::sleep(WATCHED);
    let (after, vmm_after) = (wake_ups(|process| !is_vmm(process))?, vmm()?);
    let roles = ["monitor", "devices", "stand-in"];
    let seen = |role: &&&str| before.keys().any(|thread| thread.starts_with(**role));
    ensure!(roles.iter().filter(seen).count() == 3, "{before:?}");
    ensure!(
        before == after,
        "woke up:\nbefore {before:?}\nafter {after:?}"
    );
    let rate = (vmm_after - vmm_before) as f64 / WATCHED.as_secs_f64();
    ensure!(
        vmm_before > 0 && rate < VMM_WAKE_UPS,
        "QEMU woke up {rate} times a second"
    );
    Ok(())
}

fn is_vmm(process: &Process) -> bool {
    process.program().starts_with("qemu")
}

/// How often each thread of the sandbox has gone to sleep, by the role and the
/// name of the thread.
fn wake_ups(of: impl Fn(&Process) -> bool) -> Result<BTreeMap<String, u64>> {
    let mut counted = BTreeMap::new();
    let sandbox = |process: &Process| {
        is_vmm(process) || process.argv.first().is_some_and(|name| name == "casemate")
    };
    for process in processes::ours()
        .into_iter()
        .filter(|one| sandbox(one) && of(one))
    {
        let role = process.argv.get(1).cloned().unwrap_or_default();
        for task in fs::read_dir(format!("/proc/{}/task", process.pid))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let value = |key: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(key));
                line.map(str::trim)
                    .with_context(|| format!("{key} of {process}"))
            };
            let thread = format!("{role} {} {}", value("Name:")?, value("Pid:")?);
            counted.insert(thread, value("voluntary_ctxt_switches:")?.parse()?);
        }
    }
    Ok(counted)
}
