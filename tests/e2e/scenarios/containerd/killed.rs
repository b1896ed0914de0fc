//! Killed with signal 9: the engine, a shim, a virtual machine.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casemate_e2e::containerd::Shim;
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Containerd, processes};
use nix::sys::signal::Signal;

use super::service::ended;
use super::{Body, SOON, V16, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![engine_killed, shim_killed]
}

pub(super) fn only_vm() -> (&'static str, Body, &'static str) {
    ("machine_killed", machine_killed, "runc has no machine")
}

pub(super) fn only_vm_of_one_engine() -> [(&'static str, Body, &'static str); 2] {
    let why = "runc's shim leaves cgroups and processes then";
    [
        ("engine_killed_midway", engine_killed_midway, why),
        ("start_killed", start_killed, why),
    ]
}

/// Containers do not notice; the next engine knows them, and their ends.
fn engine_killed(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let log = containerd.host.new_folder("log")?.join("log");
    let uri = format!("file://{}", log.display());
    let id = containerd.host.new_id();
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done";
    let run = ctr.run_as(&id, &["--detach", "--log-uri", &uri], &["sh", "-c", script]);
    run.run()?.ok()?;
    let pid = ctr.pid(&id)?;
    let marks = containerd.host.new_folder("marks")?;
    let bound = format!(
        "type=bind,src={},dst=/marks,options=rbind:ro",
        marks.display()
    );
    let waits = "until test -e /marks/go; do sleep 0.1; done; exit 9";
    let lines = || Ok::<_, anyhow::Error>(fs::read_to_string(&log)?.lines().count());
    let goes_on = || {
        let now = lines()?;
        until_true("more output", SOON, || Ok(lines()? > now + 3))
    };
    goes_on()?;
    let short = ctr.run_detached(&["--mount", &bound], &["sh", "-c", waits])?;
    containerd.kill()?;
    fs::write(marks.join("go"), "")?;
    goes_on()?;
    containerd.restart()?;
    goes_on()?;
    ensure!(ctr.status(&id)?.as_deref() == Some("RUNNING"));
    ensure!(ctr.pid(&id)? == pid);
    ended_meanwhile(containerd, &short)?;
    ctr.exec(&id, &[], &["sh", "-c", "exit 5"])
        .run()?
        .exits(5)?;
    let events = ctr.events()?;
    ctr.does(["tasks", "kill", "--signal", "SIGKILL", &id])?;
    let exit = events.wait(&id, "/tasks/exit", |event| event.text("id") == id)?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    until_true("the end", SOON, || {
        Ok(ctr.status(&id)?.as_deref() == Some("STOPPED"))
    })?;
    events.stop()?;
    ctr.remove(&id)
}

/// The next engine is told how a task has ended. Since 1.7 it takes one without
/// processes, as runc's shim shows it, for one that never began, and removes both.
fn ended_meanwhile(containerd: &Containerd<'_>, id: &str) -> Result<()> {
    let ctr = containerd.ctr();
    if containerd.release == V16 || containerd.host.runtime.is_vm() {
        ensure!(ctr.status(id)?.as_deref() == Some("STOPPED"));
        let deleted = ctr.does(["tasks", "delete", id])?;
        contains(&deleted.errors(), "exit code 9")?;
    }
    ensure!(ctr.status(id)?.is_none());
    ctr.remove(id)
}

/// Whatever the engine has begun when it is killed, the next one ends or knows.
fn engine_killed_midway(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    for pause in [30, 60, 100, 150, 200, 300, 500] {
        let id = containerd.host.new_id();
        let client = ctr.run_as(&id, &["--detach", "--null-io"], &["sleep", "1000"]);
        let client = client.start()?;
        sleep(Duration::from_millis(pause));
        containerd.kill()?;
        client.exit()?;
        containerd.restart()?;
        super::forget(&ctr, &id).with_context(|| format!("killed after {pause} ms"))?;
    }
    Ok(())
}

/// The engine cleans up with the shim's `delete`.
fn shim_killed(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let events = ctr.events()?;
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let exec = ctr
        .exec(&id, &[], &["sh", "-c", "echo here; exec sleep 1000"])
        .start()?;
    until_true("the added", SOON, || Ok(exec.written() == b"here\n"))?;
    let shim = containerd.task("default", &id)?.connect()?.shim_pid as i32;
    let shim = processes::get(shim).context("no shim")?;
    ensure!(shim.argv.iter().any(|word| word.contains(&id)), "{shim}");
    shim.kill()?;
    let exit = events.wait(&id, "/tasks/exit", |event| event.text("id") == id)?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    events.wait(&id, "/tasks/delete", |_| true)?;
    ensure!(exec.exit()?.shell() != 0);
    until_true("no task", SOON, || Ok(ctr.status(&id)?.is_none()))?;
    events.stop()?;
    // The container can be started anew.
    let start = ctr.command(["tasks", "start", "--detach", "--null-io", &id]);
    start.run()?.ok()?;
    ctr.exec(&id, &[], &["true"]).run()?.ok()?;
    ctr.remove(&id)
}

/// The container and who was added to it have ended by signal 9, and that is
/// known within a second.
fn machine_killed(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let events = ctr.events()?;
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let exec = ctr
        .exec(&id, &[], &["sh", "-c", "echo here; exec sleep 1000"])
        .start()?;
    until_true("the added", SOON, || Ok(exec.written() == b"here\n"))?;
    let mut machines = processes::ours();
    machines.retain(|process| process.program().starts_with("qemu-system"));
    ensure!(machines.len() == 1, "{machines:?}");
    machines[0].kill()?;
    let killed = Instant::now();
    let exit = events.wait(&id, "/tasks/exit", |event| event.text("id") == id)?;
    let took = killed.elapsed();
    ensure!(took < Duration::from_secs(1), "known after {took:?}");
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    exec.finish()?.exits(137)?;
    ensure!(ctr.status(&id)?.as_deref() == Some("STOPPED"));
    events.stop()?;
    ctr.remove(&id)
}

/// Whenever `start` is killed, `delete` leaves nothing, and the same container
/// can be started anew.
fn start_killed(containerd: &Containerd<'_>) -> Result<()> {
    let host = containerd.host;
    let others = processes::ours().len();
    let bundle = Bundle::new(host, &["sh", "-c", "exit 7"])?;
    let shim = Shim::new(containerd, &bundle.dir)?;
    for pause in (0..=60).step_by(6) {
        let start = shim.verb("start", &[]).start()?;
        sleep(Duration::from_millis(pause));
        // It may have ended by then.
        let _ = start.signal(Signal::SIGKILL);
        start.exit()?;
        shim.delete()?;
        let left = processes::ours;
        until_true("the end of all it has begun", SOON, || {
            Ok(left().len() == others)
        })
        .with_context(|| format!("killed after {pause} ms: {:?}", left()))?;
    }
    let task = shim.start()?;
    task.create(shim.path())?;
    task.start("")?;
    ensure!(task.wait("")?.exit_status == 7);
    ended(&shim, &task)
}
