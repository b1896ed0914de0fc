//! The Task service of a shim that the scenario has started itself: what it
//! answers, and with which codes it refuses.

use std::fmt::Debug;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use casemate_e2e::containerd::task::{process, resources};
use casemate_e2e::containerd::{Refusal, Shim, Task, Tasks};
use casemate_e2e::protos::api::Status;
use casemate_e2e::protos::protobuf::well_known_types::any::Any;
use casemate_e2e::protos::protobuf::{Message, MessageField};
use casemate_e2e::protos::ttrpc::Code;
use casemate_e2e::protos::{cgroups, cgroups_v2};
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Containerd, processes};
use serde_json::json;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![answers]
}

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![order_of_calls, added_processes, measured]
}

pub(super) fn only_vm() -> (&'static str, Body, &'static str) {
    let why = "runc's shim is one of both, with the engine that it came with";
    ("both_names", both_names, why)
}

/// Demands a refusal with this code.
pub(super) fn refused<T: Debug>(code: Code, answer: Result<T, Refusal>) -> Result<()> {
    match answer {
        Err(refusal) if refusal.code == code => Ok(()),
        Err(refusal) => bail!("{code:?} was expected, not {refusal}"),
        Ok(answer) => bail!("{code:?} was expected, not {answer:?}"),
    }
}

/// A shim whose container is created.
pub(super) fn created<'e, 'h>(
    containerd: &'e Containerd<'h>,
    program: &[&str],
) -> Result<(Shim<'e, 'h>, Task)> {
    let bundle = Bundle::new(containerd.host, program)?;
    let shim = Shim::new(containerd, &bundle.dir)?;
    let task = shim.start()?;
    task.create(shim.path())?;
    Ok((shim, task))
}

/// A process to add.
pub(super) fn program(words: &[&str]) -> MessageField<Any> {
    let search = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let user = json!({"uid": 0, "gid": 0});
    process(&json!({"args": words, "cwd": "/", "env": [search], "user": user}))
}

/// Ends the container, if it runs, and the shim.
pub(super) fn ended(shim: &Shim<'_, '_>, task: &Task) -> Result<()> {
    let process = task.connect()?.shim_pid as i32;
    if task.state("")?.status != Status::STOPPED.into() {
        task.kill("", 9, true)?;
        ensure!(task.wait("")?.exit_status == 137);
    }
    task.delete("")?;
    // The shim may be gone before it has answered.
    let _ = task.shutdown(false);
    until_true("the shim's end", SOON, || {
        Ok(processes::get(process).is_none_or(|process| process.is_dead()))
    })?;
    shim.delete()?;
    Ok(())
}

/// A container from create to delete.
fn answers(containerd: &Containerd<'_>) -> Result<()> {
    let (shim, task) = created(containerd, &["sh", "-c", "sleep 0.5; exit 7"])?;
    let state = task.state("")?;
    ensure!(state.status == Status::CREATED.into(), "{state:?}");
    ensure!(
        state.id == task.id && state.bundle == shim.path(),
        "{state:?}"
    );
    // A time that is none is the year 1 in one language, nothing in another.
    ensure!(state.pid != 0 && state.exited_at.seconds <= 0, "{state:?}");
    let connected = task.connect()?;
    ensure!(connected.task_pid == state.pid, "{connected:?}");
    ensure!(
        connected.shim_pid != 0 && connected.shim_pid != state.pid,
        "{connected:?}"
    );
    // Who waits may come before the start, and not alone.
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let task = task.clone();
            thread::spawn(move || task.wait(""))
        })
        .collect();
    ensure!(task.start("")?.pid == state.pid);
    ensure!(task.state("")?.status == Status::RUNNING.into());
    let late = task.wait("")?;
    ensure!(late.exit_status == 7, "{late:?}");
    for waiting in waiting {
        let waited = waiting.join().ok().context("it panicked")??;
        ensure!(waited == late, "{waited:?} and {late:?}");
    }
    let state = task.state("")?;
    ensure!(
        state.status == Status::STOPPED.into() && state.exit_status == 7,
        "{state:?}"
    );
    ensure!(state.exited_at == late.exited_at, "{state:?} and {late:?}");
    refused(Code::NOT_FOUND, task.kill("", 15, false))?;
    ensure!(task.wait("")? == late);
    let deleted = task.delete("")?;
    ensure!(
        deleted.exit_status == 7 && deleted.exited_at == late.exited_at,
        "{deleted:?}"
    );
    ensure!(deleted.pid == connected.task_pid, "{deleted:?}");
    refused(Code::NOT_FOUND, task.state(""))?;
    refused(Code::NOT_FOUND, task.delete(""))?;
    let _ = task.shutdown(false);
    let process = connected.shim_pid as i32;
    until_true("the shim's end", SOON, || {
        Ok(processes::get(process).is_none_or(|process| process.is_dead()))
    })?;
    shim.delete()?;
    Ok(())
}

/// What comes too early, too late or twice.
fn order_of_calls(containerd: &Containerd<'_>) -> Result<()> {
    let vm = containerd.host.runtime.is_vm();
    let (shim, task) = created(containerd, &["sleep", "1000"])?;
    let other = Task {
        id: containerd.host.new_id(),
        ..task.clone()
    };
    refused(Code::NOT_FOUND, other.state(""))?;
    refused(Code::NOT_FOUND, other.start(""))?;
    refused(Code::NOT_FOUND, other.delete(""))?;
    refused(Code::NOT_FOUND, other.kill("", 9, true))?;
    refused(Code::NOT_FOUND, other.wait(""))?;
    refused(Code::NOT_FOUND, task.start("none"))?;
    if vm {
        refused(Code::ALREADY_EXISTS, task.create(shim.path()))?;
    }
    task.start("")?;
    ensure!(task.delete("").is_err());
    if vm {
        refused(Code::FAILED_PRECONDITION, task.delete(""))?;
        refused(Code::FAILED_PRECONDITION, task.start(""))?;
        refused(Code::FAILED_PRECONDITION, task.resume())?;
        refused(Code::INVALID_ARGUMENT, task.kill("", 999, false))?;
    } else {
        ensure!(task.start("").is_err());
    }
    task.pause()?;
    ensure!(task.state("")?.status == Status::PAUSED.into());
    task.resume()?;
    ensure!(task.state("")?.status == Status::RUNNING.into());
    // While it has a container a shim lives on, whatever it is told.
    task.shutdown(false)?;
    let there = task.state("")?;
    ensure!(there.status == Status::RUNNING.into(), "{there:?}");
    if vm {
        let checkpoint = task.checkpoint("/tmp/none");
        let refusal = checkpoint.err().context("a checkpoint was taken")?;
        let codes = [Code::UNIMPLEMENTED, Code::FAILED_PRECONDITION];
        ensure!(
            codes.contains(&refusal.code) && refusal.text.len() > 10,
            "{refusal}"
        );
    }
    // A client calls that without looking.
    task.close_io("", true)?;
    let without_terminal = task.resize("", 80, 24);
    if vm {
        refused(Code::FAILED_PRECONDITION, without_terminal)?;
    }
    ended(&shim, &task)
}

/// The same for processes that are added.
fn added_processes(containerd: &Containerd<'_>) -> Result<()> {
    let (shim, task) = created(containerd, &["sleep", "1000"])?;
    task.start("")?;
    task.exec("one", program(&["sh", "-c", "exit 6"]))?;
    refused(Code::ALREADY_EXISTS, task.exec("one", program(&["true"])))?;
    let state = task.state("one")?;
    ensure!(state.status == Status::CREATED.into(), "{state:?}");
    let waiting = task.clone();
    let waiting = thread::spawn(move || waiting.wait("one"));
    let started = task.start("one")?;
    ensure!(started.pid != 0);
    let waited = waiting.join().ok().context("it panicked")??;
    ensure!(waited.exit_status == 6, "{waited:?}");
    refused(Code::NOT_FOUND, task.kill("one", 9, false))?;
    // Clients set the size without looking whether it has ended.
    let _ = task.resize("one", 80, 24);
    let deleted = task.delete("one")?;
    ensure!(
        deleted.exit_status == 6 && deleted.pid == started.pid,
        "{deleted:?}"
    );
    ensure!(
        deleted.exited_at == waited.exited_at,
        "{deleted:?} and {waited:?}"
    );
    refused(Code::NOT_FOUND, task.delete("one"))?;
    refused(Code::NOT_FOUND, task.state("one"))?;
    // One that cannot start is there until it is deleted, or not at all.
    task.exec("two", program(&["no-such-program"]))?;
    ensure!(task.start("two").is_err());
    let _ = task.delete("two");
    // One that was never started can be deleted.
    task.exec("three", program(&["true"]))?;
    task.delete("three")?;
    task.exec("three", program(&["sleep", "1000"]))?;
    task.start("three")?;
    ensure!(task.delete("three").is_err());
    task.kill("three", 9, false)?;
    ensure!(task.wait("three")?.exit_status == 137);
    ended(&shim, &task)
}

/// Processes, what they use, and limits that change.
fn measured(containerd: &Containerd<'_>) -> Result<()> {
    let (shim, task) = created(containerd, &["sh", "-c", "sleep 1000 & wait"])?;
    task.start("")?;
    until_true("two processes", SOON, || {
        Ok(task.pids()?.processes.len() == 2)
    })?;
    let limit = 77 << 20;
    let limits = json!({"memory": {"limit": limit}, "pids": {"limit": 50}});
    task.update(resources(&limits))?;
    let stats = task.stats()?.stats.into_option().context("no metrics")?;
    let (pids, memory, limited, time) = match &*stats.type_url {
        "io.containerd.cgroups.v1.Metrics" => {
            let metrics = cgroups::metrics::Metrics::parse_from_bytes(&stats.value)?;
            let memory = &metrics.memory.usage;
            let pids = (metrics.pids.current, metrics.pids.limit);
            (pids, memory.usage, memory.limit, metrics.cpu.usage.total)
        }
        "io.containerd.cgroups.v2.Metrics" => {
            let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&stats.value)?;
            let memory = &metrics.memory;
            let pids = (metrics.pids.current, metrics.pids.limit);
            (
                pids,
                memory.usage,
                memory.usage_limit,
                metrics.cpu.usage_usec,
            )
        }
        other => bail!("metrics of type {other}"),
    };
    ensure!(pids == (2, 50), "{pids:?}");
    ensure!(
        memory > 0 && memory < limited && time > 0,
        "{memory} {time}"
    );
    ensure!(limited == limit, "{limited}");
    let wrong = task.update(resources(&json!({"memory": {"limit": "much"}})));
    ensure!(wrong.is_err());
    ended(&shim, &task)
}

/// One shim, for engines that call the service by its older and its newer name.
fn both_names(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let address = containerd.shim_address("default", &id)?;
    for tasks in Tasks::connect_by_each_name(&address)? {
        let id = id.clone();
        let state = Task { tasks, id }.state("")?;
        ensure!(state.status == Status::RUNNING.into(), "{state:?}");
    }
    ctr.remove(&id)
}
