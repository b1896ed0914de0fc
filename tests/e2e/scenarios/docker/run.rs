//! Containers that run and end, and commands that are added to them.

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Docker};

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![run_and_its_ends, exec, attach_and_logs]
}

pub(super) fn only_vm() -> (&'static str, Body, &'static str) {
    (
        "installed",
        installed,
        "runc is there without being installed",
    )
}

fn run_and_its_ends(docker: &Docker<'_>) -> Result<()> {
    let script = "cat; echo error >&2; exit 7";
    let run = docker.run(["--rm", "--interactive", BUSYBOX, "sh", "-c", script]);
    let run = run.input("hello\n").run()?.exits(7)?;
    ensure!(run.text() == "hello" && run.errors() == "error", "{run}");
    let script = "sleep 1000 & kill -9 $!; wait $!";
    for (words, code) in [
        (&["no-such-program"][..], 127),
        (&["/etc"], 126),
        (&["sh", "-c", script], 137),
        (&["sh", "-c", "kill -TERM 0"], 143),
    ] {
        let run = docker.run([&["--rm", "--init", BUSYBOX], words].concat());
        run.run()?.exits(code)?;
    }
    Ok(())
}

fn exec(docker: &Docker<'_>) -> Result<()> {
    let id = docker.run_detached([BUSYBOX, "sleep", "1000"])?;
    let exec = docker
        .command(["exec", "-i", "-e", "A=b", "-u", "1:2", "-w", "/tmp", &id])
        .args(["sh", "-c", "cat; echo $A; id -u; pwd; exit 5"])
        .input("in\n")
        .run()?
        .exits(5)?;
    ensure!(exec.text() == "in\nb\n1\n/tmp", "{exec}");
    docker.does(["exec", "-d", &id, "touch", "/mark"])?;
    until_true("the mark", SOON, || {
        let seen = docker.command(["exec", &id, "test", "-e", "/mark"]).run()?;
        Ok(seen.exit.shell() == 0)
    })?;
    let missing = docker.command(["exec", &id, "no-such-program"]).run()?;
    // Older engines say 126 whatever the reason, and say it on another stream.
    ensure!(matches!(missing.exit.shell(), 126 | 127), "{missing}");
    let said = missing.text() + &missing.errors();
    contains(&said, "executable file not found in $PATH")?;
    let top = docker.does(["top", &id])?;
    contains(&top.text(), "sleep 1000")?;
    ensure!(top.text().lines().count() == 2, "{top}");
    docker.remove(&[&id])
}

/// What a container writes reaches who attaches, and the log.
fn attach_and_logs(docker: &Docker<'_>) -> Result<()> {
    let create = ["create", "--network=none", "--interactive", BUSYBOX, "cat"];
    let id = docker.does(create)?.text();
    let start = docker.command(["start", "--attach", "--interactive", &id]);
    let start = start.input("line\n").run()?.ok()?;
    ensure!(start.text() == "line", "{start}");
    ensure!(docker.does(["logs", &id])?.text() == "line");
    docker.remove(&[&id])?;
    let script = "echo one; echo error >&2; until test -e /go; do sleep 0.1; done; echo two";
    let id = docker.run_detached([BUSYBOX, "sh", "-c", script])?;
    let follower = docker.command(["logs", "--follow", &id]).start()?;
    until_true("what is there already", SOON, || {
        Ok(follower.written() == b"one\n" && follower.complained() == b"error\n")
    })?;
    docker.does(["exec", &id, "touch", "/go"])?;
    let followed = follower.finish()?.ok()?;
    ensure!(followed.text() == "one\ntwo", "{followed}");
    let tail = docker.does(["logs", "--tail=1", "--timestamps", &id])?;
    ensure!(
        tail.text().ends_with("Z two") && tail.text().lines().count() == 1,
        "{tail}"
    );
    docker.remove(&[&id])
}

/// An engine that runs learns of the runtime by its configuration, and forgets it.
fn installed(docker: &Docker<'_>) -> Result<()> {
    let etc = docker.configuration();
    let etc = etc.ancestors().nth(2).context("a folder like /etc")?;
    let etc = etc.to_str().context("a path in UTF-8")?;
    let install = |flags: &[&str]| {
        let told = [&["install", "docker", "--etc", etc], flags].concat();
        Ok::<_, anyhow::Error>(docker.host.oci(&told).run()?.ok()?.text())
    };
    let reloaded = |runtimes: &str| {
        docker.reload()?;
        until_true(runtimes, SOON, || {
            let format = "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}{{.DefaultRuntime}}";
            let info = docker.does(["info", "--format", format])?.text();
            let names = info.split(' ').filter(|name| !name.contains("runc"));
            Ok(names.collect::<Vec<_>>().join(" ") == runtimes)
        })
    };
    let run = |flags: &[&str]| {
        let words = [&["--rm"], flags, &[BUSYBOX, "uname", "-r"]].concat();
        docker.run(words).run()
    };
    contains(&install(&[])?, "BuildKit")?;
    reloaded("casemate scenario scenario")?;
    contains(&run(&["--runtime=casemate"])?.ok()?.text(), "casemate")?;
    contains(&install(&["--undo"])?, "reload")?;
    reloaded("scenario scenario")?;
    run(&["--runtime=casemate"])?.exits(125)?;
    install(&["--default"])?;
    reloaded("casemate scenario casemate")?;
    contains(&run(&[])?.ok()?.text(), "casemate")?;
    contains(&install(&["--undo"])?, "restart")
}
