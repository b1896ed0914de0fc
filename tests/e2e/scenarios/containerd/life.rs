//! A task from its start to its end, and what clients and listeners see of it.

use anyhow::{Context, Result, ensure};
use casemate_e2e::containerd::{Ctr, Event};
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Containerd};
use serde_json::json;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![life]
}

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![signals, created_and_started, out_of_memory]
}

fn life(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let events = ctr.events()?;
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    ensure!(ctr.status(&id)?.as_deref() == Some("RUNNING"));
    let pid = ctr.pid(&id)?;
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "added",
        &id,
        "sh",
        "-c",
        "sleep 0.3; exit 5",
    ];
    ctr.command(exec).run()?.exits(5)?;
    ctr.does(["tasks", "pause", &id])?;
    ensure!(ctr.status(&id)?.as_deref() == Some("PAUSED"));
    ctr.does(["tasks", "resume", &id])?;
    ensure!(ctr.status(&id)?.as_deref() == Some("RUNNING"));
    measured(&ctr, &id)?;
    let listed = ctr.does(["tasks", "ps", &id])?;
    ensure!(listed.text().lines().count() == 2, "{listed}");
    ctr.does(["tasks", "kill", "--signal", "SIGKILL", &id])?;
    becomes(&ctr, &id, "STOPPED")?;
    let late = ctr.command(["tasks", "kill", &id]).run()?;
    ensure!(late.exit.shell() != 0, "{late}");
    ctr.does(["tasks", "delete", &id])?;
    ctr.does(["containers", "delete", &id])?;
    let topics = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "paused",
        "resumed",
        "exit",
        "delete",
    ];
    let mut topics = topics.map(|name| format!("/tasks/{name}")).to_vec();
    if !containerd.host.runtime.is_vm() {
        // runc's shim may end before it has sent that.
        topics.pop();
    }
    events.demand(&id, &topics)?;
    told(&events.of(&id), &id, pid)?;
    events.stop()?;
    // Nothing was out of the ordinary, and the engine's log says so.
    let log = containerd.log();
    let mut ours = log.lines().filter(|line| line.contains("runtime=casemate"));
    let bad = ours.find(|line| line.contains("level=warn") || line.contains("level=error"));
    ensure!(bad.is_none(), "{bad:?}");
    Ok(())
}

/// What the events of `life` say beside their names.
fn told(events: &[Event], id: &str, pid: i32) -> Result<()> {
    let [
        create,
        start,
        added,
        started,
        exec_exit,
        _,
        _,
        exit,
        rest @ ..,
    ] = events
    else {
        anyhow::bail!("too few events");
    };
    let pid = i64::from(pid);
    for event in [create, start, exit].into_iter().chain(rest) {
        ensure!(event.number("pid") == pid, "not {pid}: {event:?}");
    }
    ensure!(create.text("bundle").ends_with(id), "{create:?}");
    let root = &create.body["rootfs"][0];
    ensure!(root["type"] == "overlay", "{create:?}");
    ensure!(added.text("exec_id") == "added" && started.text("exec_id") == "added");
    let of_exec = started.number("pid");
    // In a VM it may be that of what stands for the task.
    ensure!(of_exec != 0, "{started:?}");
    ensure!(exec_exit.text("id") == "added" && exit.text("id") == id);
    ensure!(exec_exit.number("pid") == of_exec, "{exec_exit:?}");
    ensure!(exec_exit.number("exit_status") == 5, "{exec_exit:?}");
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    for delete in rest {
        ensure!(delete.number("exit_status") == 137, "{delete:?}");
        let same = delete.body["exited_at"] == exit.body["exited_at"];
        ensure!(same, "{exit:?} {delete:?}");
    }
    Ok(())
}

/// The client decodes metrics of both versions of cgroups, under other names.
fn measured(ctr: &Ctr<'_, '_>, id: &str) -> Result<()> {
    let table = ctr.does(["tasks", "metrics", id])?;
    let text = table.text();
    let value = |name: &str| -> Result<u64> {
        let mut lines = text.lines().map(str::split_whitespace);
        let found = lines.find_map(|mut words| {
            let fits = words.next()?.starts_with(name);
            fits.then(|| words.next()).flatten()
        });
        let found = found.with_context(|| format!("no {name} in\n{text}"))?;
        found.parse().with_context(|| found.to_owned())
    };
    for name in ["memory.usage", "cpu", "pids.current"] {
        ensure!(value(name)? > 0, "{name}: {text}");
    }
    ensure!(value("pids.current")? < 20, "{text}");
    Ok(())
}

fn becomes(ctr: &Ctr<'_, '_>, id: &str, status: &str) -> Result<()> {
    until_true(status, SOON, || {
        Ok(ctr.status(id)?.as_deref() == Some(status))
    })
}

/// A signal reaches the program, by name and number, and all processes if that
/// is wanted.
fn signals(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let script =
        "trap 'echo usr1' USR1; trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let id = containerd.host.new_id();
    let run = ctr.run_as(&id, &["--rm"], &["sh", "-c", script]).start()?;
    let says = |what: &str| {
        until_true(what, SOON, || {
            Ok(String::from_utf8_lossy(&run.written()).contains(what))
        })
    };
    says("ready")?;
    // SIGUSR1: signal(7).
    ctr.does(["tasks", "kill", "--signal", "10", &id])?;
    says("usr1")?;
    let wrong = ctr.command(["tasks", "kill", "--signal", "NOSUCH", &id]);
    ensure!(wrong.run()?.exit.shell() != 0);
    // Without more it is SIGTERM, which the client of `run` passes on as well.
    ctr.does(["tasks", "kill", &id])?;
    run.finish()?.exits(3)?;
    let script = "sleep 1000 & sleep 1000 & wait";
    let id = ctr.run_detached(&[], &["sh", "-c", script])?;
    ctr.does(["tasks", "kill", "--all", "--signal", "SIGKILL", &id])?;
    becomes(&ctr, &id, "STOPPED")?;
    ctr.remove(&id)
}

/// `create` and `start` apart: nothing runs before its time, and a task that
/// has ended can be deleted and started anew.
fn created_and_started(containerd: &Containerd<'_>) -> Result<()> {
    let (host, ctr) = (containerd.host, containerd.ctr());
    let id = host.new_id();
    let marks = host.new_folder("marks")?;
    let script = "echo run >>/marks/runs; exit 4";
    let bundle = Bundle::new(host, &["sh", "-c", script])?;
    let bundle = bundle.bind(marks.to_str().unwrap_or_default(), "/marks")?;
    // The engine has a bundle of its own, to which the specification is copied.
    let root = bundle.dir.join("rootfs");
    let bundle = bundle.edit(|spec| spec["root"]["path"] = json!(root))?;
    let spec = bundle.dir.join("config.json");
    let create = ctr.command(["containers", "create", "--runtime", &containerd.runtime()]);
    create.arg("--config").arg(spec).arg(&id).run()?.ok()?;
    ensure!(ctr.status(&id)?.is_none());
    for runs in 1..=2 {
        let start = ctr.command(["tasks", "start", &id]).run()?.exits(4)?;
        let written = std::fs::read_to_string(marks.join("runs"))?;
        ensure!(written.lines().count() == runs, "{start}");
        ensure!(ctr.status(&id)?.is_none());
    }
    ctr.does(["containers", "delete", &id])?;
    Ok(())
}

/// The kernel ends a program that takes more memory than it may have.
fn out_of_memory(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let events = ctr.events()?;
    let id = containerd.host.new_id();
    let limit = (32 << 20).to_string();
    // A tail that finds no line end keeps all it reads.
    let script = "tail /dev/zero";
    let run = ctr.run_as(
        &id,
        &["--rm", "--memory-limit", &limit],
        &["sh", "-c", script],
    );
    let run = run.run()?;
    ensure!(run.exit.shell() == 137, "{run}");
    events.wait(&id, "/tasks/oom", |_| true)?;
    let exit = events.wait(&id, "/tasks/exit", |event| event.text("id") == id)?;
    ensure!(exit.number("exit_status") == 137, "{exit:?}");
    events.stop()
}
