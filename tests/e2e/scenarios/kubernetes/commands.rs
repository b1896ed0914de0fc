//! Commands that are added to containers, and streams of containers.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use casemate_e2e::cri::{Cri, Wanted, refusal};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{Containerd, Size};

use super::{Body, SOON, bodies};

/// Those for every engine.
pub(super) fn core() -> Vec<(&'static str, Body)> {
    bodies![exec_sync, exec_with_streams]
}

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![exec_on_a_terminal, attach, attach_to_a_terminal, probes]
}

/// An interactive terminal.
const TERMINAL: Wanted = Wanted {
    stdin: true,
    tty: true,
};
/// Streams with an input.
const INPUT: Wanted = Wanted {
    stdin: true,
    tty: false,
};

fn exec_sync(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("sync").run()?;
    let main = pod.idle("main").env("A", "b").start()?;
    let done = main.exec(&["sh", "-c", "echo out; echo err >&2; echo $A; exit 3"])?;
    ensure!(
        done.code == 3 && done.stdout == "out\nb\n" && done.stderr == "err\n",
        "{done:?}"
    );
    let killed = main.exec(&["sh", "-c", "kill -9 $$"])?;
    ensure!(killed.code == 137, "{killed:?}");
    let big = main.exec(&["sh", "-c", "dd if=/dev/zero bs=64k count=16 | tr '\\0' x"])?;
    ensure!(
        big.stdout.len() == 1 << 20,
        "{} bytes came",
        big.stdout.len()
    );
    // What takes too long is killed, and that is said.
    let begun = Instant::now();
    let late = refusal(main.exec_within(1, &["sleep", "1234"]))?;
    ensure!(begun.elapsed() < Duration::from_secs(10));
    contains(&late.message, "timeout")?;
    until_true("the end of the command", SOON, || {
        Ok(!main.sh("ps")?.contains("sleep 1234"))
    })?;
    let missing = refusal(main.exec(&["no-such-program"]))?;
    contains(&missing.message, "no-such-program")?;
    pod.end()
}

fn exec_with_streams(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("streams").run()?;
    let main = pod.idle("main").start()?;
    let script = "echo error >&2; cat; exit 5";
    let session = main.session(INPUT, &["sh", "-c", script])?;
    session.type_text("one\n")?;
    session.await_text("one\n")?;
    session.type_text("two\n")?;
    // The end of the input is the end of what reads it.
    session.end_input()?;
    let ended = session.finish()?;
    ensure!(
        ended.code == 5 && ended.stdout == "one\ntwo\n" && ended.stderr == "error\n",
        "{ended:?}"
    );
    // Much in both directions.
    let session = main.session(
        INPUT,
        &[
            "sh",
            "-c",
            "wc -c; dd if=/dev/zero bs=64k count=32 2>/dev/null",
        ],
    )?;
    session.type_text(&"x".repeat(1 << 20))?;
    session.end_input()?;
    let ended = session.finish()?;
    let expected = "1048576\n".len() + (2 << 20);
    ensure!(
        ended.code == 0 && ended.stdout.len() == expected,
        "{} bytes came",
        ended.stdout.len()
    );
    ensure!(ended.stdout.starts_with("1048576\n"));
    let quiet = main.session(Wanted::default(), &["true"])?.finish()?;
    ensure!(
        quiet.code == 0 && quiet.stdout.is_empty() && quiet.stderr.is_empty(),
        "{quiet:?}"
    );
    pod.end()
}

/// Waits for a size of the terminal.
const SIZE: &str = "until test \"$(stty size)\" = '33 101'; do sleep 0.1; done; echo resized";

fn exec_on_a_terminal(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("terminal").run()?;
    let main = pod.idle("main").start()?;
    let session = main.session(TERMINAL, &["sh"])?;
    session.type_text("test -t 0 && test -t 1 && test -t 2 && echo a ter''minal\r")?;
    session.await_text("a terminal\r\n")?;
    session.resize(Size {
        rows: 33,
        columns: 101,
    })?;
    session.type_text(&format!("{SIZE}\r"))?;
    session.await_text("resized\r\n")?;
    // Control-C ends what is in the foreground, not the shell.
    session.type_text("echo sleep''ing; sleep 1000\r")?;
    session.await_text("sleeping\r\n")?;
    session.type_text("\x03echo a''wake\r")?;
    session.await_text("awake\r\n")?;
    session.type_text("exit 4\r")?;
    session.finish()?.exits(4)?;
    pod.end()
}

fn attach(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("attach").run()?;
    let input = |once| {
        move |config: &mut casemate_e2e::cri::messages::ContainerConfig| {
            config.stdin = true;
            config.stdin_once = once;
        }
    };
    let main = pod.container("main", &["cat"]).edit(input(false)).start()?;
    // Who attaches and goes leaves the container as it is, and the next finds it so.
    for word in ["first", "second"] {
        let session = main.attach(INPUT)?;
        session.type_text(&format!("{word}\n"))?;
        session.await_text(&format!("{word}\n"))?;
        drop(session);
        main.await_log(word)?;
    }
    ensure!(main.is_running()?);
    // Here the first who ends the input ends it for good.
    let once = pod.container("once", &["sh", "-c", "cat; echo end >&2"]);
    let once = once.edit(input(true)).start()?;
    let session = once.attach(INPUT)?;
    session.type_text("word\n")?;
    session.await_text("word\n")?;
    session.end_input()?;
    let ended = session.finish()?;
    ensure!(
        ended.stdout == "word\n" && ended.stderr == "end\n",
        "{ended:?}"
    );
    ensure!(once.exits(0)? == "word\nend");
    pod.end()
}

fn attach_to_a_terminal(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("attach").run()?;
    let main = pod.container("main", &["sh"]).edit(|config| {
        config.stdin = true;
        config.tty = true;
    });
    let main = main.start()?;
    let session = main.attach(TERMINAL)?;
    session.resize(Size {
        rows: 33,
        columns: 101,
    })?;
    session.type_text(&format!("{SIZE}\r"))?;
    session.await_text("resized\r\n")?;
    session.type_text("exit 6\r")?;
    // The code is the container's, not the session's.
    ensure!(main.ended()?.exit_code == 6);
    session.finish()?.exits(0)?;
    pod.end()
}

/// Probes by a command, of two containers at once, and nothing is left of any.
fn probes(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("probes").run()?;
    let main = pod.idle("main").start()?;
    let other = pod.idle("other").start()?;
    let probe = |container: &casemate_e2e::cri::Container<'_, '_, '_>| -> Result<()> {
        for number in 0..25 {
            let code = number % 3;
            let words = ["sh", "-c", &format!("cat /proc/1/comm; exit {code}")];
            ensure!(container.exec_within(20, &words)?.exits(code)? == "sleep");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let second = scope.spawn(|| probe(&other));
        probe(&main)?;
        second
            .join()
            .map_err(|_| anyhow::anyhow!("the second prober panicked"))?
    })?;
    let running = main.sh("ps | grep -c sh; true")?;
    // The one that asks, its shell and grep.
    ensure!(running.trim().parse::<u32>()? <= 3, "{running}");
    pod.end()
}
