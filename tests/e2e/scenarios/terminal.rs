//! A user in front of a container: `run -it`, `exec -it` and what is typed
//! there, with podman.
//!
//! The shell has a prompt of its own, and what is typed never contains what is
//! waited for: the terminal shows both.

mod added;
mod attach;
mod command_line;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use casemate_e2e::expect::{contains, counted};
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, DEBIAN, Exit, Host, Podman, Scenario, Size, Typist, scenarios};
use nix::sys::signal::Signal;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        shell,
        size_when_a_program_asks,
        keys_that_signal,
        job_control,
        end_of_input,
        last_words,
        large_paste,
        line_editor,
        full_screen,
        killed_client,
        hung_up_client,
    ];
    all.extend(added::scenarios());
    all.extend(attach::scenarios());
    all.extend(command_line::scenarios());
    all
}

const SOON: Duration = Duration::from_secs(30);
const WINDOW: Size = Size {
    rows: 30,
    columns: 100,
};
const WIDER: Size = Size {
    rows: 50,
    columns: 132,
};
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_Z: &str = "\x1a";
const CTRL_BACKSLASH: &str = "\x1c";
const PROMPT: &str = "fort> ";

/// The shell that the user gets.
fn run_shell<'h>(podman: &Podman<'h>, flags: &[&str]) -> Result<Typist<'h>> {
    let prompt = format!("--env=PS1={PROMPT}");
    let arguments = [&["-it", &prompt], flags, &[BUSYBOX, "sh"]].concat();
    let mut typist = podman.run(arguments)?.on_terminal(WINDOW)?;
    typist.await_text(PROMPT, SOON)?;
    Ok(typist)
}

/// Types a line and gives what it prints. A shell that edits lines may show
/// its prompt and what is typed more than once, so marks are around it.
fn ask(typist: &mut Typist<'_>, line: &str) -> Result<String> {
    typist.type_text(&format!("echo ::$((40+2)); {line}\recho $((40+2))::\r"))?;
    typist.await_text("::42\r\n", SOON)?;
    let answer = typist.await_text("42::\r\n", SOON)?;
    let typed = |line: &&str| line.contains("::") || line.contains(PROMPT);
    let lines: Vec<&str> = answer.lines().filter(|line| !typed(line)).collect();
    Ok(lines.join("\n"))
}

/// Demands that a line is answered so.
fn answers(typist: &mut Typist<'_>, line: &str, expected: &str) -> Result<()> {
    let answer = ask(typist, line)?;
    ensure!(
        answer == expected,
        "{line}: {answer:?} instead of {expected:?}"
    );
    Ok(())
}

/// Types a line again until it is answered so: what it asks about arrives by
/// another way than the line.
fn comes_to_answer(typist: &mut Typist<'_>, line: &str, expected: &str) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = ask(typist, line)?;
        if answer == expected {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{line}: still {answer:?}, never {expected:?}");
        }
    }
}

/// Starts a program that says that it is in the foreground: before that, keys
/// that signal would go to the shell.
fn foreground(typist: &mut Typist<'_>, program: &str) -> Result<()> {
    typist.type_text(&format!("sh -c 'echo $((50+2)); exec {program}'\r"))?;
    typist.await_text("52\r\n", SOON)?;
    Ok(())
}

/// Types what signals the foreground, and demands that it has ended so. The key
/// throws away what is typed behind it before the shell is there again.
fn signalled(typist: &mut Typist<'_>, key: &str, code: i32) -> Result<()> {
    typist.type_text(key)?;
    typist.await_text(PROMPT, SOON)?;
    typist.type_text("echo code $?,$((40+2))\r")?;
    typist.await_text(&format!("code {code},42\r\n"), SOON)?;
    Ok(())
}

/// What a terminal shows of `word` when a program reads and repeats it.
fn repeated(typist: &mut Typist<'_>, word: &str) -> Result<()> {
    typist.type_text(&format!("{word}\r"))?;
    typist.await_text(&format!("{word}\r\n{word}\r\n"), SOON)?;
    Ok(())
}

fn remove(podman: &Podman<'_>, id: &str) -> Result<()> {
    podman
        .command(["rm", "--force", "--time=0", id])?
        .run()?
        .ok()?;
    Ok(())
}

/// Waits for a container's end, demands its exit code and removes it.
fn ended(podman: &Podman<'_>, id: &str, code: i32) -> Result<()> {
    let waited = podman.command(["wait", id])?.run()?.ok()?;
    ensure!(waited.text() == code.to_string(), "{waited}");
    remove(podman, id)
}

/// The terminal has the size of the user's from the beginning, and follows it.
fn shell(host: &Host) -> Result<()> {
    let mut typist = run_shell(&Podman::new(host)?, &["--rm"])?;
    answers(&mut typist, "tty", "/dev/pts/0")?;
    answers(&mut typist, "stty size", "30 100")?;
    answers(
        &mut typist,
        "test -c /dev/console && echo $$ $TERM",
        "1 xterm",
    )?;
    for (size, text) in [(WIDER, "50 132"), (WINDOW, "30 100")] {
        typist.resize(size)?;
        comes_to_answer(&mut typist, "stty size", text)?;
    }
    typist.type_text("exit 7\r")?;
    typist.finish()?.exits(7)?;
    Ok(())
}

/// A program is told that the size has changed.
fn size_when_a_program_asks(host: &Host) -> Result<()> {
    let script = "trap 'echo now $(stty size)' WINCH; echo first $(stty size); \
                  trap 'exit 3' INT; while :; do sleep 0.1; done";
    let run = Podman::new(host)?.run(["--rm", "-it", BUSYBOX, "sh", "-c", script])?;
    let mut typist = run.on_terminal(WINDOW)?;
    typist.await_text("first 30 100\r\n", SOON)?;
    typist.resize(WIDER)?;
    typist.await_text("now 50 132\r\n", SOON)?;
    typist.resize(WINDOW)?;
    typist.await_text("now 30 100\r\n", SOON)?;
    typist.type_text(CTRL_C)?;
    typist.finish()?.exits(3)?;
    Ok(())
}

/// Ctrl-C and Ctrl-\ end what runs in the foreground, not the shell.
fn keys_that_signal(host: &Host) -> Result<()> {
    let mut typist = run_shell(&Podman::new(host)?, &["--rm"])?;
    for (program, key, code) in [
        ("sleep 1000", CTRL_C, 130),
        ("cat", CTRL_C, 130),
        ("cat", CTRL_BACKSLASH, 131),
    ] {
        foreground(&mut typist, program)?;
        if program == "cat" {
            repeated(&mut typist, "through")?;
        }
        signalled(&mut typist, key, code)?;
    }
    // At the prompt it only begins a new line.
    typist.type_text("unfinished\x03")?;
    typist.await_text(PROMPT, SOON)?;
    answers(&mut typist, "echo $$", "1")?;
    typist.type_text("exit\r")?;
    typist.finish()?;
    Ok(())
}

/// Ctrl-Z stops, `jobs` knows, `fg` lets go on; what is in the background may
/// not read.
fn job_control(host: &Host) -> Result<()> {
    let mut typist = run_shell(&Podman::new(host)?, &["--rm"])?;
    foreground(&mut typist, "cat")?;
    repeated(&mut typist, "before")?;
    typist.type_text(CTRL_Z)?;
    typist.await_text("Stopped", SOON)?;
    contains(&ask(&mut typist, "jobs")?, "Stopped")?;
    typist.type_text("fg\r")?;
    typist.await_text("exec cat\"\r\n", SOON)?;
    repeated(&mut typist, "after")?;
    signalled(&mut typist, CTRL_C, 130)?;
    answers(&mut typist, "jobs", "")?;
    ask(&mut typist, "cat &")?;
    until_true("the background to be stopped", SOON, || {
        Ok(ask(&mut typist, "jobs")?.contains("Stopped (tty input)"))
    })?;
    kill_the_job(&mut typist)?;
    typist.type_text("exit 0\r")?;
    typist.finish()?.ok()?;
    Ok(())
}

/// The shell does not leave while it knows of a job.
fn kill_the_job(typist: &mut Typist<'_>) -> Result<()> {
    ask(typist, "kill -9 %1")?;
    until_true("the end of the job", SOON, || {
        Ok(ask(typist, "jobs")?.is_empty())
    })
}

/// Ctrl-D ends a program that reads, and the shell.
fn end_of_input(host: &Host) -> Result<()> {
    let mut typist = run_shell(&Podman::new(host)?, &["--rm"])?;
    foreground(&mut typist, "wc -c")?;
    typist.type_text(&format!("abcd\r{CTRL_D}"))?;
    typist.await_text("\n5\r\n", SOON)?;
    typist.type_text("sh -c 'echo $((40+2)); exit 5'\r")?;
    typist.await_text("42\r\n", SOON)?;
    typist.await_text(PROMPT, SOON)?;
    typist.type_text(CTRL_D)?;
    typist.finish()?.exits(5)?;
    Ok(())
}

/// What a program writes just before its end is all shown.
fn last_words(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    for _ in 0..5 {
        let run = podman.run(["--rm", "-t", BUSYBOX, "seq", "1", "20000"])?;
        counted(&run.on_terminal(WINDOW)?.finish()?.ok()?.stdout, true)?;
    }
    Ok(())
}

/// A shell that takes the terminal out of its usual mode for each line.
fn line_editor(host: &Host) -> Result<()> {
    let prompt = format!("--env=PS1={PROMPT}");
    let run = Podman::new(host)?.run(["--rm", "-it", &prompt, DEBIAN, "bash", "--norc"])?;
    let mut typist = run.on_terminal(WINDOW)?;
    typist.await_text(PROMPT, SOON)?;
    comes_to_answer(&mut typist, "stty size", "30 100")?;
    // Home, then Ctrl-K; a completion; the line before.
    typist.type_text("never\x01\x0becho one; ls /etc/debian_ver\t\r")?;
    typist.await_text("one\r\n/etc/debian_version\r\n", SOON)?;
    typist.type_text("\x10\r")?;
    typist.await_text("one\r\n/etc/debian_version\r\n", SOON)?;
    foreground(&mut typist, "cat")?;
    repeated(&mut typist, "through")?;
    signalled(&mut typist, CTRL_C, 130)?;
    typist.type_text(&format!("sh -c 'exit 6'\r{CTRL_D}"))?;
    typist.finish()?.exits(6)?;
    Ok(())
}

/// An editor draws the whole window, and its keys have no echo.
fn full_screen(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let run = podman.run(["-it", "--name=desk", BUSYBOX, "vi", "/letter"])?;
    let mut typist = run.on_terminal(WINDOW)?;
    // The last line of the window tells of the file.
    typist.await_text("\x1b[30;1H", SOON)?;
    typist.await_text("- /letter", SOON)?;
    typist.type_text("iDear ")?;
    typist.await_text("Dear", SOON)?;
    typist.resize(WIDER)?;
    typist.await_text("\x1b[50;1H", SOON)?;
    typist.type_text("reader,\rgood bye\x1b")?;
    typist.await_text("- /letter [Modified] 2/2", SOON)?;
    typist.type_text(":wq\r")?;
    typist.finish()?.ok()?;
    let copy = host.dir.join("letter");
    let copied = podman.command(["cp", "desk:/letter", &copy.to_string_lossy()])?;
    copied.run()?.ok()?;
    ensure!(fs::read_to_string(copy)? == "Dear reader,\ngood bye\n");
    remove(&podman, "desk")
}

/// More than any buffer on the way holds is pasted while the program reads.
fn large_paste(host: &Host) -> Result<()> {
    const LINES: usize = 2000;
    let script = "stty -echo; echo ready; wc -l; wc -c </dev/null; stty echo";
    let run = Podman::new(host)?.run(["--rm", "-it", BUSYBOX, "sh", "-c", script])?;
    let mut typist = run.on_terminal(WINDOW)?;
    typist.await_text("ready\r\n", SOON)?;
    for _ in 0..LINES {
        typist.type_text("a line of words that somebody has copied elsewhere\r")?;
    }
    typist.type_text(CTRL_D)?;
    typist.await_text(&format!("{LINES}\r\n0\r\n"), SOON)?;
    typist.finish()?.ok()?;
    Ok(())
}

fn exec_shell<'h>(podman: &Podman<'h>, id: &str) -> Result<Typist<'h>> {
    let prompt = format!("--env=PS1={PROMPT}");
    let exec = podman.command(["exec", "-it", &prompt, id, "sh"])?;
    let mut typist = exec.on_terminal(WINDOW)?;
    typist.await_text(PROMPT, SOON)?;
    Ok(typist)
}

/// The container goes on without its client, and takes another.
fn killed_client(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let mut typist = run_shell(&podman, &["--name=left"])?;
    ask(&mut typist, "WORD=kept")?;
    typist.signal(Signal::SIGKILL)?;
    ensure!(typist.exit_within(SOON)? == Exit::Signal(Signal::SIGKILL as i32));
    ensure!(podman.inspect("left", "{{.State.Status}}")? == "running");
    let mut again = podman.command(["attach", "left"])?.on_terminal(WIDER)?;
    again.type_text("\r")?;
    again.await_text(PROMPT, SOON)?;
    answers(&mut again, "echo $WORD", "kept")?;
    comes_to_answer(&mut again, "stty size", "50 132")?;
    again.type_text("exit 4\r")?;
    again.finish()?;
    ended(&podman, "left", 4)
}

/// So it does when the user's connection breaks, whatever the client does then.
fn hung_up_client(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let mut typist = run_shell(&podman, &["--name=left"])?;
    ask(&mut typist, "WORD=kept")?;
    typist.hang_up()?;
    let mut again = podman.command(["attach", "left"])?.on_terminal(WIDER)?;
    again.type_text("\r")?;
    again.await_text(PROMPT, SOON)?;
    answers(&mut again, "echo $WORD", "kept")?;
    again.type_text("exit 4\r")?;
    again.finish()?;
    typist.exit_within(SOON)?;
    ended(&podman, "left", 4)
}
