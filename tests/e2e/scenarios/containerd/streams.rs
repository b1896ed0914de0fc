//! Much output, slow readers, clients that go and come, and loggers.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::wait::until_true;
use nix::sys::signal::Signal;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![large_streams, loggers]
}

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![slow_reader, attach, client_gone]
}

/// The lines `1` to `count`.
fn numbers(count: u32) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

fn large_streams(containerd: &Containerd<'_>) -> Result<()> {
    const COUNT: u32 = 300_000;
    let ctr = containerd.ctr();
    let script = format!("seq 1 {COUNT} >&2 & seq 1 {COUNT}; wait");
    let run = ctr.run(&["--rm"], &["sh", "-c", &script]).run()?.ok()?;
    ensure!(run.stdout == numbers(COUNT).as_bytes(), "stdout is another");
    ensure!(run.stderr == numbers(COUNT).as_bytes(), "stderr is another");
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let program = ["sh", "-c", "echo ready; tail -c 7; echo $?"];
    let mut exec = ctr.exec(&id, &[], &program).input_by_hand().start()?;
    until_true("the reader", SOON, || Ok(exec.written() == b"ready\n"))?;
    let mut input = exec.stdin.take().context("an input")?;
    input.write_all(numbers(COUNT).as_bytes())?;
    drop(input);
    let exec = exec.finish()?.ok()?;
    ensure!(exec.text() == format!("ready\n{COUNT}\n0"), "{exec}");
    ctr.remove(&id)
}

/// Who writes waits for who reads; nothing is lost.
fn slow_reader(containerd: &Containerd<'_>) -> Result<()> {
    const COUNT: u32 = 400_000;
    let ctr = containerd.ctr();
    let folder = containerd.host.new_folder("marks")?;
    let bound = format!(
        "type=bind,src={},dst=/marks,options=rbind:rw",
        folder.display()
    );
    let script = format!("seq 1 {COUNT}; touch /marks/written");
    let run = ctr.run(&["--rm", "--mount", &bound], &["sh", "-c", &script]);
    let mut run = run.output_by_hand().start()?;
    let mut output = run.stdout.take().context("an output")?;
    let mut read = vec![0; 10_000];
    output.read_exact(&mut read)?;
    sleep(Duration::from_secs(1));
    ensure!(!folder.join("written").exists(), "it is kept somewhere");
    for _ in 0..10 {
        let mut more = vec![0; 20_000];
        output.read_exact(&mut more)?;
        read.extend(more);
        sleep(Duration::from_millis(20));
    }
    output.read_to_end(&mut read)?;
    ensure!(
        read == numbers(COUNT).as_bytes(),
        "{} bytes, others",
        read.len()
    );
    run.finish()?.ok()?;
    Ok(())
}

/// A client that comes later, or again, has the streams from there on.
fn attach(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = containerd.host.new_id();
    let script = "until test -e /go; do sleep 0.1; done; echo out; echo error >&2; cat; exit 3";
    ctr.run_as(&id, &["--detach"], &["sh", "-c", script])
        .run()?
        .ok()?;
    let mut client = ctr
        .command(["tasks", "attach", &id])
        .input_by_hand()
        .start()?;
    ctr.exec(&id, &[], &["touch", "/go"]).run()?.ok()?;
    until_true("the streams", SOON, || {
        Ok(client.written() == b"out\n" && client.complained() == b"error\n")
    })?;
    let mut input = client.stdin.take().context("an input")?;
    input.write_all(b"in\n")?;
    until_true("the answer", SOON, || Ok(client.written() == b"out\nin\n"))?;
    // The end of input of one client is not that of the program.
    client.signal(Signal::SIGKILL)?;
    client.exit()?;
    ensure!(ctr.status(&id)?.as_deref() == Some("RUNNING"));
    let mut client = ctr
        .command(["tasks", "attach", &id])
        .input_by_hand()
        .start()?;
    let mut input = client.stdin.take().context("an input")?;
    input.write_all(b"again\n")?;
    until_true("the answer", SOON, || Ok(client.written() == b"again\n"))?;
    // That may end before it can say so.
    let end = ctr
        .exec(&id, &[], &["sh", "-c", "kill $(pidof cat)"])
        .run()?;
    ensure!(matches!(end.exit.shell(), 0 | 137), "{end}");
    client.finish()?.exits(3)?;
    // The client that sees the end deletes the task.
    ctr.remove(&id)
}

/// Without a reader the program goes on as far as a pipe holds what it writes.
fn client_gone(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = containerd.host.new_id();
    let script =
        "echo ready; until test -e /go; do usleep 100000; done; echo more; exec sleep 1000";
    let client = ctr.run_as(&id, &[], &["sh", "-c", script]).start()?;
    until_true("the output", SOON, || Ok(client.written() == b"ready\n"))?;
    client.signal(Signal::SIGKILL)?;
    client.exit()?;
    ctr.exec(&id, &[], &["touch", "/go"]).run()?.ok()?;
    until_true("it to go on", SOON, || {
        let found = ctr.exec(&id, &[], &["pidof", "sleep"]).run()?;
        Ok(found.exit.shell() == 0)
    })?;
    let client = ctr.command(["tasks", "attach", &id]).start()?;
    until_true("what came meanwhile", SOON, || {
        Ok(client.written() == b"more\n")
    })?;
    ctr.does(["tasks", "kill", "--signal", "SIGKILL", &id])?;
    client.finish()?.exits(137)?;
    ctr.remove(&id)
}

/// A program or a file takes the output in place of a client.
fn loggers(containerd: &Containerd<'_>) -> Result<()> {
    let (host, ctr) = (containerd.host, containerd.ctr());
    let folder = host.new_folder("logs")?;
    let here = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let script = "echo out; echo error >&2; exit 3";
    let file = format!("file://{}", here("both"));
    // The shim of runc closes the file when the first of the two streams has ended, so
    // that what the other one still holds is lost: none holds anything at the end.
    let slow = "echo out; echo error >&2; sleep 1; exit 3";
    let run = ctr.run(&["--rm", "--log-uri", &file], &["sh", "-c", slow]);
    let run = run.run()?.exits(3)?;
    ensure!(run.text().is_empty(), "{run}");
    let mut lines: Vec<String> = fs::read_to_string(here("both"))?
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    ensure!(lines == ["error", "out"], "{lines:?}");
    // Descriptors 3 and 4 are the streams; closing 5 says that it is ready. When the
    // streams have ended it may be told to end, which is not to lose anything.
    let logger = format!(
        "#!/bin/sh\ntrap '' TERM\necho \"$CONTAINER_NAMESPACE/$CONTAINER_ID $*\" >{0}\nexec 5>&-\n\
         cat <&4 >{1} 3<&- & exec 4<&-\ncat <&3 >{2}\nwait\ntouch {3}\n",
        here("call"),
        here("error"),
        here("out"),
        here("end"),
    );
    fs::write(here("logger"), logger)?;
    fs::set_permissions(here("logger"), fs::Permissions::from_mode(0o755))?;
    let id = host.new_id();
    let binary = format!("binary://{}?key=value", here("logger"));
    let run = ctr.run_as(&id, &["--rm", "--log-uri", &binary], &["sh", "-c", script]);
    run.run()?.exits(3)?;
    until_true("the logger's end", SOON, || Ok(folder.join("end").exists()))?;
    for (name, text) in [("out", "out\n"), ("error", "error\n")] {
        ensure!(fs::read_to_string(here(name))? == text, "{name}");
    }
    let call = fs::read_to_string(here("call"))?;
    ensure!(call == format!("default/{id} key value\n"), "{call:?}");
    let none = format!("binary://{}", here("no-such-logger"));
    let id = host.new_id();
    let run = ctr
        .run_as(&id, &["--rm", "--log-uri", &none], &["true"])
        .run()?;
    ensure!(run.exit.shell() != 0, "{run}");
    super::forget(&ctr, &id)
}
