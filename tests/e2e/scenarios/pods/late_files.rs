//! Files that take their time, while their container goes.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::{Bundle, Container, Host, Scenario, processes, scenarios};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::{STAY, exec, member, running};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![gone_while_they_are_read]
        .into_iter()
        .map(|one| one.only_vm("runc's containers have their files from the host's kernel"))
        .collect()
}

/// Longer than it takes to remove a container.
const PAUSE: Duration = Duration::from_millis(400);

/// Some requests.
const WORK: Duration = Duration::from_millis(2);

/// A program is killed while pieces of its file are on their way, and its container
/// removed: the guest's kernel has nothing to complain of, and goes on.
fn gone_while_they_are_read(host: &Host) -> Result<()> {
    const ROUNDS: usize = 6;
    let complaints = "cat /proc/sys/kernel/tainted";
    let first = running(host, &Bundle::new(host, STAY)?)?;
    let before = exec(host, &first, complaints)?;
    let server = file_server()?;
    for _ in 0..ROUNDS {
        let bundle = member(host, &first, &["network"], STAY)?;
        let container = Container::create(host, &bundle)?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let slow = scope.spawn(|| slow_down(server, &done));
            let removed = container.start().and_then(|()| {
                thread::sleep(PAUSE / 2);
                container.delete_force()
            });
            done.store(true, Ordering::Relaxed);
            slow.join().ok().context("the thread that slows down")??;
            removed
        })?;
    }
    let after = exec(host, &first, complaints)?;
    ensure!(after == before, "{before} has become {after}");
    first.delete_force()
}

/// The thread of the sandbox's device process that answers for the files. Each device
/// has a worker, and the one for files is made last.
fn file_server() -> Result<Pid> {
    let mut ours = processes::ours().into_iter();
    let devices = ours.find(|process| process.has_word("devices"));
    let tasks = format!("/proc/{}/task", devices.context("no device process")?.pid);
    let mut workers = Vec::new();
    for task in fs::read_dir(tasks)? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))? == "vring_worker\n" {
            let name = task.file_name().unwrap_or_default().to_string_lossy();
            workers.push(name.parse()?);
        }
    }
    ensure!(workers.len() == 2, "workers: {workers:?}");
    Ok(Pid::from_raw(workers.into_iter().max().unwrap_or_default()))
}

/// Has a thread stand still most of the time.
fn slow_down(thread: Pid, done: &AtomicBool) -> Result<()> {
    ptrace::seize(thread, ptrace::Options::empty())?;
    while !done.load(Ordering::Relaxed) {
        ptrace::interrupt(thread)?;
        thread::sleep(PAUSE);
        ptrace::cont(thread, None)?;
        thread::sleep(WORK);
    }
    ptrace::interrupt(thread)?;
    // It can be let go once it has stopped.
    loop {
        match ptrace::detach(thread, None) {
            Err(Errno::ESRCH) if fs::exists(format!("/proc/{thread}"))? => thread::sleep(WORK),
            result => return Ok(result?),
        }
    }
}
