//! Calls that are killed before they have done their work.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Container, Host, Scenario, processes};
use nix::sys::signal::Signal;

use super::SOON;

pub(super) fn scenarios() -> Vec<Scenario> {
    let leaves = "what runc leaves depends on the moment";
    vec![
        Scenario::new("create_killed", create_killed).only_vm(leaves),
        Scenario::new("start_killed", start_killed).only_vm(leaves),
        Scenario::new("exec_killed", exec_killed).only_vm(leaves),
        Scenario::new("delete_killed", delete_killed).only_vm(leaves),
    ]
}

/// Moments between 0 and `limit`, another series for each verb.
fn moments(seed: u64, limit: Duration) -> impl Iterator<Item = Duration> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        limit.mul_f64((state % 1000) as f64 / 1000.0)
    })
}

/// Calls the runtime and kills the call at that moment.
fn killed(host: &Host, line: &[&str], moment: Duration) -> Result<()> {
    let running = host.oci(line).output_by_hand().start()?;
    thread::sleep(moment);
    // It may have done its work already.
    let _ = running.signal(Signal::SIGKILL);
    running.exit()?;
    Ok(())
}

/// After a forced `delete` no process of the runtime is there, and the id is free.
fn cleared(host: &Host, id: &str) -> Result<()> {
    host.oci(&["delete", "--force", id]).run()?.ok()?;
    host.oci(&["state", id]).run()?.exits(1)?;
    let program = host.runtime.kind.to_string();
    until_true("the end of all processes", SOON, || {
        let left = processes::ours();
        Ok(!left.iter().any(|process| process.program() == program))
    })
}

fn create_killed(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let began = Instant::now();
    Container::create(host, &bundle)?.delete_force()?;
    for moment in moments(0x9e37_79b9, began.elapsed()).take(8) {
        let id = host.new_id();
        killed(host, &["create", "--bundle", bundle.path(), &id], moment)?;
        cleared(host, &id)?;
    }
    Ok(())
}

fn start_killed(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    for moment in moments(0x7f4a_7c15, Duration::from_millis(60)).take(4) {
        let container = Container::create(host, &bundle)?;
        killed(host, &["start", &container.id], moment)?;
        let status = container.status()?;
        ensure!(matches!(status.as_str(), "created" | "running"), "{status}");
        cleared(host, &container.id)?;
        container.wait(SOON)?;
    }
    Ok(())
}

fn exec_killed(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    for moment in moments(0x2545_f491, Duration::from_millis(150)).take(12) {
        killed(
            host,
            &["exec", "--detach", &container.id, "sleep", "1001"],
            moment,
        )?;
        ensure!(container.status()? == "running");
    }
    host.oci(&["exec", &container.id, "true"]).run()?.ok()?;
    cleared(host, &container.id)
}

fn delete_killed(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    for moment in moments(0x4f6c_dd1d, Duration::from_millis(200)).take(4) {
        let container = Container::run(host, &bundle)?;
        killed(host, &["delete", "--force", &container.id], moment)?;
        cleared(host, &container.id)?;
        container.wait(SOON)?;
    }
    Ok(())
}
