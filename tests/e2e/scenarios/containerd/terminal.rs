//! A user in front of a container: `run -t`, `tasks exec -t`, `tasks attach`.
//!
//! What is typed never contains what is waited for: the terminal shows both.

use std::time::Instant;

use anyhow::{Result, bail};
use casemate_e2e::expect::counted;
use casemate_e2e::{Command, Containerd, Size, Typist};

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![shell]
}

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![added_shell, hung_up]
}

const WINDOW: Size = Size {
    rows: 30,
    columns: 100,
};
const WIDER: Size = Size {
    rows: 50,
    columns: 132,
};
const PROMPT: &str = "fort>";

/// The shell of a command on a terminal.
fn at_prompt(command: Command<'_>) -> Result<Typist<'_>> {
    let mut typist = command.on_terminal(WINDOW)?;
    typist.await_text(PROMPT, SOON)?;
    Ok(typist)
}

/// Types a line until it is answered so: what it asks about comes by another
/// way than the line.
fn answers(typist: &mut Typist<'_>, line: &str, expected: &str) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        typist.type_text(&format!("{line}\r"))?;
        typist.await_text("\n", SOON)?;
        let answer = typist.await_text(PROMPT, SOON)?;
        // The client leaves line ends to its own terminal, too.
        let answer = answer.replace('\r', "");
        let answer = answer.trim_end_matches(PROMPT).trim_end();
        if answer == expected {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{line}: {answer:?} instead of {expected:?}");
        }
    }
}

/// Size, keys that signal, the end of input: the same of `run` and of `exec`.
fn uses_the_shell(typist: &mut Typist<'_>) -> Result<()> {
    for (size, text) in [(WINDOW, "30 100"), (WIDER, "50 132")] {
        typist.resize(size)?;
        answers(typist, "stty size", text)?;
    }
    // A program that has spoken is in the foreground.
    typist.type_text("sh -c 'echo $((40+1)); exec sleep 1000'\r")?;
    typist.await_text("41", SOON)?;
    typist.type_text("\x03")?;
    typist.await_text(PROMPT, SOON)?;
    answers(typist, "echo $?", "130")?;
    typist.type_text("seq 1 5000 | tail -n 1\r")?;
    typist.await_text("5000\r", SOON)?;
    typist.await_text(PROMPT, SOON)?;
    typist.type_text("sh -c 'exit 5'\r")?;
    typist.await_text(PROMPT, SOON)?;
    typist.type_text("\x04")
}

fn shell(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let flags = ["--rm", "--tty", "--env=PS1=fort>"];
    let mut typist = at_prompt(ctr.run(&flags, &["sh"]))?;
    answers(&mut typist, "tty; echo $$ $TERM", "/dev/pts/0\n1 xterm")?;
    uses_the_shell(&mut typist)?;
    typist.finish()?.exits(5)?;
    // What a program writes just before its end is all shown; the shim of runc may hang
    // the terminal up before it has read the last of it.
    let run = ctr.run(&["--rm", "--tty"], &["seq", "1", "20000"]);
    let shown = run.on_terminal(WINDOW)?.finish()?.ok()?.stdout;
    counted(&shown, containerd.host.runtime.is_vm())
}

fn added_shell(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let program = ["env", "PS1=fort>", "sh"];
    let mut typist = at_prompt(ctr.exec(&id, &["--tty"], &program))?;
    uses_the_shell(&mut typist)?;
    typist.finish()?.exits(5)?;
    // Two at once, each with a size of its own.
    let mut one = at_prompt(ctr.exec(&id, &["--tty"], &program))?;
    let mut two = at_prompt(ctr.exec(&id, &["--tty"], &program))?;
    one.resize(WIDER)?;
    answers(&mut one, "stty size", "50 132")?;
    answers(&mut two, "stty size", "30 100")?;
    for (typist, code) in [(one, 3), (two, 4)] {
        typist.type_text(&format!("exit {code}\r"))?;
        typist.finish()?.exits(code)?;
    }
    ctr.remove(&id)
}

/// Who loses the terminal leaves the shell as it is, and may come back.
fn hung_up(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = containerd.host.new_id();
    let run = ctr.run_as(&id, &["--tty", "--env=PS1=fort>"], &["sh"]);
    let mut typist = at_prompt(run)?;
    answers(&mut typist, "WORD=kept", "")?;
    typist.signal(nix::sys::signal::Signal::SIGKILL)?;
    typist.exit_within(SOON)?;
    drop(typist);
    let mut typist = ctr.command(["tasks", "attach", &id]).on_terminal(WIDER)?;
    typist.type_text("\r")?;
    typist.await_text(PROMPT, SOON)?;
    answers(&mut typist, "echo $WORD", "kept")?;
    typist.type_text("exit 8\r")?;
    typist.finish()?.exits(8)?;
    super::forget(&ctr, &id)
}
