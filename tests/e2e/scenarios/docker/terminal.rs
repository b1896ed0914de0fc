//! A user in front of a container: `run -it`, `exec -it`, going away and coming
//! back.
//!
//! What is typed never contains what is waited for: the terminal shows both.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use casemate_e2e::expect::{contains, counted};
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Docker, Exit, Running, Size, Typist};
use nix::sys::signal::Signal;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![shell, added_shell, detach_and_attach, last_words, signals]
}

const WINDOW: Size = Size {
    rows: 30,
    columns: 100,
};
const WIDER: Size = Size {
    rows: 50,
    columns: 132,
};
const PROMPT: &str = "fort> ";
const DETACH: &str = "\x10\x11";
const ENVIRONMENT: &str = "--env=PS1=fort> ";

/// The shell that the user gets.
fn run_shell<'h>(docker: &Docker<'h>, flags: &[&str]) -> Result<Typist<'h>> {
    let words = [&["-it", ENVIRONMENT], flags, &[BUSYBOX, "sh"]].concat();
    let mut typist = docker.run(words).on_terminal(WINDOW)?;
    typist.await_text(PROMPT, SOON)?;
    Ok(typist)
}

/// Types a line and gives what comes before the next prompt.
fn ask(typist: &mut Typist<'_>, line: &str) -> Result<String> {
    typist.type_text(&format!("{line}\r"))?;
    typist.await_text("\n", SOON)?;
    let answer = typist.await_text(PROMPT, SOON)?;
    let answer = answer.strip_suffix(PROMPT).unwrap_or(&answer);
    Ok(answer.trim_end().to_owned())
}

/// Types a line until it is answered so: what it asks about comes by another
/// way than the line.
fn answers(typist: &mut Typist<'_>, line: &str, expected: &str) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = ask(typist, line)?;
        if answer == expected {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{line}: {answer:?} instead of {expected:?}");
        }
    }
}

/// Size, keys that signal, job control: the same of `run` and of `exec`.
fn uses_the_shell(typist: &mut Typist<'_>) -> Result<()> {
    for (size, text) in [(WINDOW, "30 100"), (WIDER, "50 132"), (WINDOW, "30 100")] {
        typist.resize(size)?;
        answers(typist, "stty size", text)?;
    }
    // A program that has spoken is in the foreground.
    typist.type_text("sh -c 'echo $((40+1)); exec sleep 1000'\r")?;
    typist.await_text("41\r\n", SOON)?;
    typist.type_text("\x03")?;
    typist.await_text(PROMPT, SOON)?;
    answers(typist, "echo $?", "130")?;
    let script = "trap \"echo \\$((40+3))\" CONT; echo $((40+2)); while :; do sleep 0.1; done";
    typist.type_text(&format!("sh -c '{script}'\r"))?;
    typist.await_text("42\r\n", SOON)?;
    typist.type_text("\x1a")?;
    typist.await_text("Stopped", SOON)?;
    typist.await_text(PROMPT, SOON)?;
    contains(&ask(typist, "jobs")?, "Stopped")?;
    typist.type_text("fg\r")?;
    typist.await_text("43\r\n", SOON)?;
    typist.type_text("\x03")?;
    typist.await_text(PROMPT, SOON)?;
    // Ctrl-D ends what reads; then the shell itself.
    typist.type_text("sh -c 'echo $((40+4)); exec wc -c'\r")?;
    typist.await_text("44\r\n", SOON)?;
    typist.type_text("abcd\r\x04")?;
    typist.await_text("\n5\r\n", SOON)?;
    typist.await_text(PROMPT, SOON)?;
    ask(typist, "sh -c 'exit 5'")?;
    typist.type_text("\x04")
}

fn shell(docker: &Docker<'_>) -> Result<()> {
    let mut typist = run_shell(docker, &["--rm"])?;
    answers(&mut typist, "tty; echo $$ $TERM", "/dev/pts/0\n1 xterm")?;
    answers(
        &mut typist,
        "test -c /dev/console && echo console",
        "console",
    )?;
    uses_the_shell(&mut typist)?;
    typist.finish()?.exits(5)?;
    Ok(())
}

fn added_shell(docker: &Docker<'_>) -> Result<()> {
    let id = docker.run_detached([BUSYBOX, "sleep", "1000"])?;
    let exec = || -> Result<Typist<'_>> {
        let exec = docker.command(["exec", "-it", ENVIRONMENT, &id, "sh"]);
        let mut typist = exec.on_terminal(WINDOW)?;
        typist.await_text(PROMPT, SOON)?;
        Ok(typist)
    };
    let mut typist = exec()?;
    contains(&ask(&mut typist, "tty")?, "/dev/pts/")?;
    uses_the_shell(&mut typist)?;
    typist.finish()?.exits(5)?;
    let mut typist = exec()?;
    ask(&mut typist, "echo $$ >/shell")?;
    typist.type_text(DETACH)?;
    typist.finish()?;
    docker.does(["exec", &id, "sh", "-c", "kill -0 $(cat /shell)"])?;
    docker.remove(&[&id])
}

/// Ctrl-P Ctrl-Q, or keys of the user's choice, leave the shell as it is.
fn detach_and_attach(docker: &Docker<'_>) -> Result<()> {
    let mut typist = run_shell(docker, &["--name=den"])?;
    ask(&mut typist, "WORD=kept")?;
    typist.type_text(DETACH)?;
    typist.finish()?.ok()?;
    ensure!(docker.inspect("den", "{{.State.Status}}")? == "running");
    for (keys, typed, size) in [("ctrl-x,x", "\x18x", WIDER), ("ctrl-a,d", "\x01d", WINDOW)] {
        let attach = docker.command(["attach", "--detach-keys", keys, "den"]);
        typist = attach.on_terminal(size)?;
        typist.type_text("\r")?;
        typist.await_text(PROMPT, SOON)?;
        answers(&mut typist, "echo $WORD", "kept")?;
        answers(
            &mut typist,
            "stty size",
            &format!("{} {}", size.rows, size.columns),
        )?;
        typist.type_text(typed)?;
        // Newer clients take it for an error that they were left.
        let left = typist.finish()?;
        ensure!(matches!(left.exit, Exit::Code(0 | 1)), "{left}");
    }
    ensure!(docker.inspect("den", "{{.State.Status}}")? == "running");
    // Two see the same.
    let attach = || docker.command(["attach", "den"]).on_terminal(WINDOW);
    let (mut first, mut second) = (attach()?, attach()?);
    for one in [&mut first, &mut second] {
        one.type_text("\r")?;
        one.await_text(PROMPT, SOON)?;
    }
    second.type_text("echo $((6*7)); exit 8\r")?;
    for one in [&mut first, &mut second] {
        one.await_text("42\r\n", SOON)?;
    }
    first.finish()?.exits(8)?;
    second.finish()?.exits(8)?;
    docker.remove(&["den"])
}

/// What a program writes just before its end is all shown; the shim of runc may hang
/// the terminal up before it has read the last of it.
fn last_words(docker: &Docker<'_>) -> Result<()> {
    let whole = docker.host.runtime.is_vm();
    let count = [BUSYBOX, "seq", "1", "20000"];
    for _ in 0..2 {
        let run = docker.run([&["--rm", "-it"][..], &count].concat());
        counted(&run.on_terminal(WINDOW)?.finish()?.ok()?.stdout, whole)?;
    }
    let id = docker.run_detached([BUSYBOX, "sleep", "1000"])?;
    for _ in 0..8 {
        let exec = docker.command(["exec", "-it", &id, "seq", "1", "20000"]);
        counted(&exec.on_terminal(WINDOW)?.finish()?.ok()?.stdout, whole)?;
    }
    docker.remove(&[&id])
}

/// A client hands on what signals it gets, unless it is asked not to.
fn signals(docker: &Docker<'_>) -> Result<()> {
    let script = "trap 'echo term; exit 5' TERM; trap 'echo usr1' USR1; \
                  trap 'echo usr2' USR2; echo ready; while :; do sleep 0.1; done";
    docker.run_detached(["--name=den", BUSYBOX, "sh", "-c", script])?;
    let logs = |what: &str| {
        until_true(what, SOON, || {
            Ok(docker.does(["logs", "den"])?.text().contains(what))
        })
    };
    logs("ready")?;
    // What is written before a client is attached it never sees.
    let attached = |client: &Running<'_>| {
        until_true("the output", SOON, || {
            docker.does(["kill", "--signal=USR1", "den"])?;
            Ok(String::from_utf8_lossy(&client.written()).contains("usr1"))
        })
    };
    let deaf = docker
        .command(["attach", "--sig-proxy=false", "den"])
        .start()?;
    attached(&deaf)?;
    deaf.signal(Signal::SIGTERM)?;
    // What comes after it in the log would come after its traces.
    docker.does(["kill", "--signal=USR2", "den"])?;
    logs("usr2")?;
    ensure!(!docker.does(["logs", "den"])?.text().contains("term"));
    // Older clients have ended by the signal themselves.
    let _ = deaf.signal(Signal::SIGKILL);
    deaf.exit()?;
    let client = docker.command(["attach", "den"]).start()?;
    // Before it shows the container's output it may not listen for signals.
    attached(&client)?;
    client.signal(Signal::SIGUSR2)?;
    until_true("the answer", SOON, || {
        Ok(String::from_utf8_lossy(&client.written()).contains("usr2"))
    })?;
    client.signal(Signal::SIGTERM)?;
    let client = client.finish()?.exits(5)?;
    contains(&client.text(), "term")?;
    docker.remove(&["den"])
}
