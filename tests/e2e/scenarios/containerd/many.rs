//! Containers side by side.

use anyhow::{Result, ensure};
use casemate_e2e::Containerd;

use super::{Body, bodies};

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![ten_at_once]
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
