//! Processes that are killed with signal 9 while pods run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::containerd::Release;
use casemate_e2e::cri::Cri;
use casemate_e2e::processes::{self, Process};
use casemate_e2e::wait::until_true;

use super::{Body, SOON, bodies};

/// Those for every engine.
pub(super) fn core() -> Vec<(&'static str, Body)> {
    bodies![engine_killed]
}

pub(super) fn only_vm() -> Vec<(&'static str, Body, &'static str)> {
    vec![
        (
            "machine_killed",
            machine_killed,
            "runc has no process between shim and container",
        ),
        (
            "shim_killed",
            shim_killed,
            "the container of a shim for runc goes on without it, and its cgroup stays",
        ),
    ]
}

/// Counts, and ends with the code that is in a file.
const COUNTER: &str = "n=0; until test -e /code; do n=$((n+1)); echo $n; sleep 0.05; done; \
                       exit $(cat /code)";

/// Pods go on without containerd. The next one finds them, writes their logs
/// on, and learns what it has missed.
fn engine_killed(containerd: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("orphan").run()?;
    let counter = pod.container("counter", &["sh", "-c", COUNTER]).start()?;
    counter.await_log("\n3\n")?;
    let script = "until test -e /dev/shm/go; do sleep 0.05; done; exit 9";
    let missed = pod.container("missed", &["sh", "-c", script]).start()?;
    // It gives the word when nobody of containerd is there.
    let script = "sleep 3; touch /dev/shm/go; sleep 1000";
    let word = pod.container("word", &["sh", "-c", script]).start()?;
    containerd.kill()?;
    std::thread::sleep(Duration::from_secs(4));
    containerd.restart()?;
    cri.ready()?;
    ensure!(pod.is_ready()?);
    // An engine from 1.7 on forgets the code of a task without processes: 255.
    let code = missed.ended()?.exit_code;
    let forgotten = !containerd.host.runtime.is_vm() && containerd.release != Release::V16;
    ensure!(code == if forgotten { 255 } else { 9 }, "{code}");
    ensure!(counter.is_running()? && word.is_running()?);
    let before = counter.lines()?.len();
    until_true("the log to go on", SOON, || {
        Ok(counter.lines()?.len() > before + 3)
    })?;
    // Not a line is missing.
    let numbers = counter.logged()?;
    for (place, number) in numbers.lines().enumerate() {
        ensure!(number == (place + 1).to_string(), "{numbers}");
    }
    counter.sh("echo 5 >/code")?;
    counter.exits(5)?;
    let again = pod.container("again", &["hostname"]).start()?;
    ensure!(again.exits(0)? == "orphan");
    pod.end()
}

/// The process of the only sandbox that has this word.
fn process(word: &str) -> Result<Process> {
    let found = processes::ours().into_iter();
    let mut found = found.filter(|process| process.has_word(word));
    found.next().with_context(|| format!("no process {word:?}"))
}

/// At once the containers are known to have ended, and the pod is not ready.
fn machine_killed(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("struck").run()?;
    let one = pod.idle("one").start()?;
    let two = pod.idle("two").start()?;
    process("-nodefaults")?.kill()?;
    let struck = Instant::now();
    for container in [&one, &two] {
        let status = container.ended_within(Duration::from_secs(2))?;
        ensure!(status.exit_code == 137, "{status}");
    }
    until_true("the pod's end", Duration::from_secs(2), || {
        Ok(!pod.is_ready()?)
    })?;
    ensure!(struck.elapsed() < Duration::from_secs(3));
    ensure!(one.exec(&["true"]).is_err());
    pod.end()
}

/// containerd clears up behind it, and a pod may follow.
fn shim_killed(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("struck").run()?;
    let main = pod.idle("main").start()?;
    process("monitor")?.kill()?;
    main.ended()?;
    until_true("the pod's end", SOON, || Ok(!pod.is_ready()?))?;
    pod.end()?;
    let next = cri.pod("next").run()?;
    next.container("main", &["true"]).start()?.exits(0)?;
    next.end()
}
