//! Pods and their containers, from the first to the last.

use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use casemate_e2e::cri::{Container, Cri, Pod};
use casemate_e2e::{Containerd, processes};

use super::{Body, bodies};

/// Those for every engine.
pub(super) fn core() -> Vec<(&'static str, Body)> {
    bodies![three_containers, starts_again, ends_in_every_order]
}

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![without_containers, init_container, many_at_once]
}

/// Ends when it is asked to, with a code of its own.
const OBEDIENT: &str = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done";

fn obedient<'p, 'c, 'h>(pod: &'p Pod<'c, 'h>, name: &str) -> Result<Container<'p, 'c, 'h>> {
    let container = pod.container(name, &["sh", "-c", OBEDIENT]).start()?;
    container.await_log("ready")?;
    Ok(container)
}

/// They share network, IPC and name, and nothing else; one's end is its own.
fn three_containers(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("three").run()?;
    ensure!(pod.is_ready()?);
    let words = ["sh", "-c", "echo $WORD; exit 3"];
    let short = pod.container("short", &words).env("WORD", "keep").start()?;
    ensure!(short.exits(3)? == "keep");
    let first = obedient(&pod, "first")?;
    let second = obedient(&pod, "second")?;
    ensure!(first.is_running()? && second.is_running()?);
    let names = "cd /proc/self/ns; for kind in net ipc uts; do readlink $kind; done; hostname";
    let shared = first.sh(names)?;
    let other = second.sh(names)?;
    ensure!(
        shared == other && shared.ends_with("\nthree"),
        "{shared}\n{other}"
    );
    let own = "readlink /proc/self/ns/pid; readlink /proc/self/ns/mnt";
    ensure!(first.sh(own)? != second.sh(own)?);
    first.sh("echo here >/dev/shm/mark; echo own >/mark")?;
    ensure!(second.sh("cat /dev/shm/mark; test ! -e /mark")? == "here");
    first.stop(10)?;
    let status = first.status()?;
    ensure!(
        status.exit_code == 7 && status.reason == "Error",
        "{status}"
    );
    ensure!(status.created_at <= status.started_at && status.started_at < status.finished_at);
    ensure!(second.is_running()? && pod.is_ready()?);
    first.remove()?;
    second.sh("true")?;
    pod.end()
}

/// A pod lives as long as nobody stops it.
fn without_containers(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("empty").run()?;
    let only = pod.container("only", &["echo", "done"]).start()?;
    ensure!(only.exits(0)? == "done");
    only.remove()?;
    thread::sleep(std::time::Duration::from_secs(1));
    ensure!(pod.is_ready()?);
    // What comes later finds the pod as it was.
    let late = pod.container("late", &["hostname"]).start()?;
    ensure!(late.exits(0)? == "empty");
    pod.stop()?;
    ensure!(!pod.is_ready()?);
    // Twice is no error.
    pod.stop()?;
    pod.remove()
}

/// What one leaves in a volume is there for the next.
fn init_container(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("initial").run()?;
    let volume = cri.host.new_folder("volume")?;
    let words = ["sh", "-c", "echo prepared >/work/state"];
    let init = pod.container("init", &words).mount(&volume, "/work");
    init.start()?.exits(0)?;
    let main = pod.container("main", &["cat", "/work/state"]);
    let main = main.mount(&volume, "/work").start()?;
    ensure!(main.exits(0)? == "prepared");
    pod.end()
}

/// One container is stopped, removed, made and started again, beside another
/// that goes on; the pod's network stays what it was.
fn starts_again(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("again").run()?;
    let address = pod.address()?;
    let witness = pod.idle("witness").start()?;
    let looked = "ip -4 -o addr show eth0 | awk '{ print $4 }'";
    let seen = witness.sh(looked)?;
    ensure!(seen.starts_with(&*address), "{seen} is not {address}");
    for attempt in 0..5 {
        let words = ["sh", "-c", OBEDIENT];
        let main = pod.container("main", &words).attempt(attempt).start()?;
        main.await_log("ready")?;
        ensure!(main.sh("test ! -e /mark; touch /mark; cat /proc/1/comm")? == "sh");
        ensure!(main.sh(looked)? == seen);
        match attempt {
            // By its own end, by force, and with a word before it.
            0 => main.sh("kill -TERM 1").map(|_| ())?,
            1 => main.stop(0)?,
            _ => main.stop(10)?,
        }
        let code = if attempt == 1 { 137 } else { 7 };
        ensure!(main.ended()?.exit_code == code, "attempt {attempt}");
        main.remove()?;
    }
    witness.sh("true")?;
    pod.end()
}

/// However they are stopped and removed, nothing is left.
fn ends_in_every_order(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let left = |what: &str| cri.nothing_left().context(what.to_owned());
    let pod = cri.pod("first").run()?;
    let (one, two) = (obedient(&pod, "one")?, pod.idle("two").create()?);
    one.stop(10)?;
    one.remove()?;
    // One that was never started.
    two.remove()?;
    pod.end()?;
    left("containers first")?;

    let pod = cri.pod("last").run()?;
    let (one, two) = (obedient(&pod, "one")?, pod.idle("two").start()?);
    pod.stop()?;
    ensure!(one.ended()?.exit_code == 137 && two.ended()?.exit_code == 137);
    two.remove()?;
    one.remove()?;
    // Twice is no error.
    one.remove()?;
    pod.remove()?;
    left("containers last")?;

    let pod = cri.pod("forced").run()?;
    let one = pod.idle("one").start()?;
    pod.idle("two").start()?;
    one.remove()?;
    pod.remove()?;
    left("no stop")
}

/// Ten pods of two containers come, work and go at once.
fn many_at_once(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let one = |number: usize| -> Result<()> {
        let name = format!("pod{number}");
        let pod = cri.pod(&name).run()?;
        let script = "mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www";
        pod.container("server", &["sh", "-c", script]).start()?;
        let client = pod.idle("client").start()?;
        let ask = "until wget -q -O - http://127.0.0.1/; do sleep 0.1; done 2>/dev/null";
        ensure!(client.sh(ask)? == name);
        pod.end()
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..10)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        all.into_iter().try_for_each(|pod| {
            pod.join()
                .map_err(|_| anyhow!("the thread of a pod panicked"))?
        })
    })?;
    let mut running = processes::ours();
    running.retain(|process| process.program().starts_with("qemu-system"));
    ensure!(running.is_empty(), "machines are left: {running:?}");
    Ok(())
}
