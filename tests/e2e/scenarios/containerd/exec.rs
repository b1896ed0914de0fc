//! Processes that are added to a task.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![exec]
}

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![exec_ids, exec_in_any_state]
}

/// Streams, flags, and how a program ended.
fn exec(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let script = "cat; echo error >&2; exit 5";
    let exec = ctr.exec(&id, &[], &["sh", "-c", script]);
    let mut exec = exec.input_by_hand().start()?;
    let mut input = exec.stdin.take().context("an input")?;
    input.write_all(b"in\n")?;
    // The client passes the end of its input on only once the process is made.
    until_true("the answer", SOON, || Ok(exec.written() == b"in\n"))?;
    drop(input);
    let exec = exec.finish()?.exits(5)?;
    ensure!(exec.text() == "in" && exec.errors() == "error", "{exec}");
    for (script, code) in [("true", 0), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let exec = ctr.exec(&id, &[], &["sh", "-c", script]);
        exec.run()?.exits(code)?;
    }
    let flags = ["--user=33:100", "--cwd=/tmp"];
    let exec = ctr
        .exec(&id, &flags, &["sh", "-c", "id -u; pwd"])
        .run()?
        .ok()?;
    ensure!(exec.text() == "33\n/tmp", "{exec}");
    let missing = ctr.exec(&id, &[], &["no-such-program"]).run()?;
    ensure!(missing.exit.shell() != 0, "{missing}");
    contains(&missing.errors(), "executable file not found in $PATH")?;
    ctr.exec(&id, &["--detach"], &["touch", "/mark"])
        .run()?
        .ok()?;
    until_true("the mark", SOON, || {
        let seen = ctr.exec(&id, &[], &["test", "-e", "/mark"]).run()?;
        Ok(seen.exit.shell() == 0)
    })?;
    ctr.remove(&id)
}

/// An id serves one process at a time, and names it.
fn exec_ids(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let other = ctr.run_detached(&[], &["sleep", "1000"])?;
    let exec = |task: &str, script: &str| {
        ctr.command([
            "tasks",
            "exec",
            "--exec-id",
            "same",
            task,
            "sh",
            "-c",
            script,
        ])
    };
    let events = ctr.events()?;
    let first = exec(&id, "echo first; exec sleep 1000").start()?;
    until_true("the first", SOON, || Ok(first.written() == b"first\n"))?;
    let second = exec(&id, "true").run()?;
    ensure!(second.exit.shell() != 0, "{second}");
    contains(&second.errors(), "already exists")?;
    // The ids of another task are its own.
    exec(&other, "exit 6").run()?.exits(6)?;
    ctr.does([
        "tasks",
        "kill",
        "--exec-id",
        "same",
        "--signal",
        "SIGKILL",
        &id,
    ])?;
    first.finish()?.exits(137)?;
    let exit = events.wait(&id, "/tasks/exit", |event| event.text("id") == "same")?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    for code in [3, 4] {
        exec(&id, &format!("exit {code}")).run()?.exits(code)?;
    }
    let none = ctr
        .command(["tasks", "kill", "--exec-id", "same", &id])
        .run()?;
    ensure!(none.exit.shell() != 0, "{none}");
    events.stop()?;
    ctr.remove(&other)?;
    ctr.remove(&id)
}

/// A task that is paused or has ended runs nothing more.
fn exec_in_any_state(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    ctr.does(["tasks", "pause", &id])?;
    let refused = ctr.exec(&id, &[], &["true"]).run()?;
    ensure!(refused.exit.shell() != 0, "{refused}");
    contains(&refused.errors(), "paused")?;
    ctr.does(["tasks", "resume", &id])?;
    ctr.exec(&id, &[], &["true"]).run()?.ok()?;
    // Who is added ends with the task.
    let added = ctr
        .exec(&id, &[], &["sh", "-c", "echo here; exec sleep 1000"])
        .start()?;
    until_true("the added", SOON, || Ok(added.written() == b"here\n"))?;
    ctr.does(["tasks", "kill", "--signal", "SIGKILL", &id])?;
    added.finish()?.exits(137)?;
    until_true("the end", SOON, || {
        Ok(ctr.status(&id)?.as_deref() == Some("STOPPED"))
    })?;
    let refused = ctr.exec(&id, &[], &["true"]).run()?;
    ensure!(refused.exit.shell() != 0, "{refused}");
    ctr.remove(&id)?;
    let refused = ctr.exec(&id, &[], &["true"]).run()?;
    contains(&refused.errors(), "not found")
}
