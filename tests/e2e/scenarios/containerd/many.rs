//! Containers and processes side by side.

use std::fs;

use anyhow::{Context, Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::wait::until_true;

use super::{Body, SOON, bodies};

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![ten_at_once, execs_at_once]
}

fn ten_at_once(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let mut running = Vec::new();
    for number in 0..10 {
        let script = format!("echo {number}; sleep 1; exit {number}");
        let run = ctr.run(&["--rm"], &["sh", "-c", &script]);
        running.push((number, run.start()?));
    }
    for (number, run) in running {
        let run = run.finish()?.exits(number)?;
        ensure!(run.text() == number.to_string(), "{run}");
    }
    Ok(())
}

/// Processes come and go, and the shim keeps nothing of them.
fn execs_at_once(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let shim = containerd.task("default", &id)?.connect()?.shim_pid;
    let open = || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{shim}/fd"))?.count());
    let round = || {
        let mut running = Vec::new();
        for number in 0..8 {
            // The client forgets streams that it has not opened by the end.
            let script = format!("echo {number}; sleep 0.5; exit {number}");
            let exec = ctr.exec(&id, &[], &["sh", "-c", &script]);
            running.push((number, exec.start()?));
        }
        for (number, exec) in running {
            let exec = exec.finish()?.exits(number)?;
            ensure!(exec.text() == number.to_string(), "{exec}");
        }
        Ok::<_, anyhow::Error>(())
    };
    round()?;
    let before = open()?;
    round()?;
    round()?;
    if !containerd.host.runtime.is_vm() {
        // runc's shim closes some when its memory is tidied up.
        return ctr.remove(&id);
    }
    let names = || -> Result<Vec<_>> {
        let links = fs::read_dir(format!("/proc/{shim}/fd"))?.flatten();
        Ok(links
            .filter_map(|link| fs::read_link(link.path()).ok())
            .collect())
    };
    until_true("descriptors to be closed", SOON, || Ok(open()? <= before))
        .with_context(|| format!("{before} before, now {:?}", names()))?;
    ctr.remove(&id)
}
