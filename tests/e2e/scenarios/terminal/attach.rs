//! Going away from a container that goes on, and coming back.

use std::io::Write;
use std::process::ChildStdin;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Host, Podman, Running, Scenario, scenarios};
use nix::sys::signal::Signal;

use super::{
    PROMPT, SOON, WIDER, WINDOW, answers, ask, comes_to_answer, ended, exec_shell, remove,
    run_shell,
};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        detach_and_attach,
        other_detach_keys,
        detach_from_an_added_shell,
        start_again_attached,
        attach_twice,
        attach_without_input,
        attach_with_input,
        attach_without_a_terminal,
        signals_pass_through,
        signals_stay_here,
    ]
}

const DETACH: &str = "\x10\x11";

/// Ctrl-P Ctrl-Q leaves the shell as it is.
fn detach_and_attach(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let mut typist = run_shell(&podman, &["--name=den"])?;
    ask(&mut typist, "WORD=kept")?;
    for size in [WIDER, WINDOW] {
        typist.press(DETACH)?;
        typist.finish()?.ok()?;
        ensure!(podman.inspect("den", "{{.State.Status}}")? == "running");
        typist = podman.command(["attach", "den"])?.on_terminal(size)?;
        typist.type_text("\r")?;
        typist.await_text(PROMPT, SOON)?;
        answers(&mut typist, "echo $WORD", "kept")?;
        comes_to_answer(
            &mut typist,
            "stty size",
            &format!("{} {}", size.rows, size.columns),
        )?;
    }
    typist.type_text("exit 6\r")?;
    typist.finish()?;
    ended(&podman, "den", 6)
}

/// The keys are the user's choice; then the usual ones are the shell's.
fn other_detach_keys(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let typist = run_shell(&podman, &["--name=den", "--detach-keys=ctrl-x,x"])?;
    typist.press("\x18x")?;
    typist.finish()?.ok()?;
    let keys = "--detach-keys=ctrl-a,d";
    let mut typist = podman
        .command(["attach", keys, "den"])?
        .on_terminal(WINDOW)?;
    typist.type_text("\r")?;
    typist.await_text(PROMPT, SOON)?;
    typist.press("\x01d")?;
    typist.finish()?.ok()?;
    ensure!(podman.inspect("den", "{{.State.Status}}")? == "running");
    remove(&podman, "den")
}

fn detach_from_an_added_shell(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    let mut typist = exec_shell(&podman, &id)?;
    ask(&mut typist, "echo $$ >/shell")?;
    typist.press(DETACH)?;
    // Podman 4 waits for the code of the shell that it has left, in vain.
    let left = typist.finish()?;
    contains(&left.text(), "detached from container")?;
    let alive = podman.command(["exec", &id, "sh", "-c", "kill -0 $(cat /shell)"])?;
    alive.run()?.ok()?;
    remove(&podman, &id)
}

/// A container that has ended is started with the terminal of who starts it.
fn start_again_attached(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let mut typist = run_shell(&podman, &["--name=den"])?;
    ask(&mut typist, "echo kept >/word")?;
    typist.type_text("exit 3\r")?;
    typist.finish()?.exits(3)?;
    let start = podman.command(["start", "--attach", "--interactive", "den"])?;
    let mut typist = start.on_terminal(WIDER)?;
    typist.await_text(PROMPT, SOON)?;
    answers(&mut typist, "cat /word", "kept")?;
    comes_to_answer(&mut typist, "stty size", "50 132")?;
    typist.type_text("exit 4\r")?;
    typist.finish()?.exits(4)?;
    ended(&podman, "den", 4)
}

/// Who is attached twice sees everything twice.
fn attach_twice(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let mut first = run_shell(&podman, &["--name=den"])?;
    let mut second = podman.command(["attach", "den"])?.on_terminal(WINDOW)?;
    second.type_text("\r")?;
    second.await_text(PROMPT, SOON)?;
    ask(&mut second, "true")?;
    first.await_text("42::\r\n", SOON)?;
    first.type_text("exit 8\r")?;
    first.finish()?.exits(8)?;
    second.finish()?;
    ended(&podman, "den", 8)
}

/// A container without a terminal that tells what it reads and is told.
const LISTENER: &str = "trap 'echo term; exit 5' TERM; trap 'echo usr1' USR1; echo ready; \
                        while :; do if read -t 1 line; then echo \"<$line>\"; fi; done";

fn listener(podman: &Podman<'_>) -> Result<()> {
    podman.run_detached(["-i", "--name=den", BUSYBOX, "sh", "-c", LISTENER])?;
    until_true("the listener", SOON, || {
        Ok(podman
            .command(["logs", "den"])?
            .run()?
            .text()
            .contains("ready"))
    })
}

fn attach_without_input(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    listener(&podman)?;
    let attached = podman.command(["attach", "--no-stdin", "den"])?;
    let attached = attached.input("nobody reads this\n").start()?;
    until_true("the output", SOON, || {
        // What was written before the client listened does not come.
        podman
            .command(["kill", "--signal=USR1", "den"])?
            .run()?
            .ok()?;
        Ok(attached.written().ends_with(b"usr1\n"))
    })?;
    podman
        .command(["kill", "--signal=TERM", "den"])?
        .run()?
        .ok()?;
    let attached = attached.finish()?;
    ensure!(!attached.text().contains("nobody"), "{attached}");
    ended(&podman, "den", 5)
}

fn attach_with_input(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    listener(&podman)?;
    let (attached, mut input) = attached(&podman, &[])?;
    for word in ["one", "two"] {
        writeln!(input, "{word}")?;
        let answer = format!("<{word}>\n");
        until_true(word, SOON, || {
            Ok(attached.written().ends_with(answer.as_bytes()))
        })?;
    }
    podman
        .command(["kill", "--signal=TERM", "den"])?
        .run()?
        .ok()?;
    attached.finish()?;
    ended(&podman, "den", 5)
}

/// The user has a terminal and the container has none: two streams.
fn attach_without_a_terminal(host: &Host) -> Result<()> {
    let script = "tty; echo error >&2; read line; echo \"<$line>\"";
    let run = Podman::new(host)?.run(["--rm", "-i", BUSYBOX, "sh", "-c", script])?;
    let mut typist = run.on_terminal(WINDOW)?;
    typist.await_text("not a tty", SOON)?;
    typist.await_text("error", SOON)?;
    typist.type_text("word\r")?;
    typist.await_text("<word>", SOON)?;
    typist.finish()?.ok()?;
    Ok(())
}

/// A client without a terminal that is attached for sure.
fn attached<'h>(podman: &Podman<'h>, flags: &[&str]) -> Result<(Running<'h>, ChildStdin)> {
    let command = podman.command([&["attach"], flags, &["den"]].concat())?;
    let mut attached = command.input_by_hand().start()?;
    let mut input = attached.stdin.take().context("podman's input")?;
    writeln!(input, "here")?;
    until_true("an answer", SOON, || {
        Ok(attached.written().ends_with(b"<here>\n"))
    })?;
    Ok((attached, input))
}

/// The client hands the signals on that it gets itself.
fn signals_pass_through(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    listener(&podman)?;
    let (attached, _input) = attached(&podman, &[])?;
    attached.signal(Signal::SIGUSR1)?;
    until_true("the signal to arrive", SOON, || {
        Ok(attached.written().ends_with(b"usr1\n"))
    })?;
    attached.signal(Signal::SIGTERM)?;
    let attached = attached.finish()?;
    contains(&attached.text(), "term")?;
    ended(&podman, "den", 5)
}

/// It does not if it is asked not to: then they are its own.
fn signals_stay_here(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    listener(&podman)?;
    let (attached, _input) = attached(&podman, &["--sig-proxy=false"])?;
    attached.signal(Signal::SIGTERM)?;
    attached.exit()?;
    ensure!(podman.inspect("den", "{{.State.Status}}")? == "running");
    let logs = podman.command(["logs", "den"])?.run()?.ok()?;
    ensure!(!logs.text().contains("term"), "{logs}");
    remove(&podman, "den")
}
