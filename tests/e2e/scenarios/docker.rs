//! A Docker engine with the runtime as its default.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Docker, Host, Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        run_and_its_ends,
        flags,
        exec,
        pause_stats_and_update,
        files,
        stop_kill_and_restart,
        restart_on_failure,
        health_check,
        attach_and_logs,
        build,
        bridge,
        what_cannot_be,
    ]
}

const SOON: Duration = Duration::from_secs(30);

fn run_and_its_ends(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let run = docker
        .run([
            "--rm",
            "--interactive",
            BUSYBOX,
            "sh",
            "-c",
            "cat; echo error >&2; exit 7",
        ])
        .input("hello\n")
        .run()?
        .exits(7)?;
    ensure!(run.text() == "hello" && run.errors() == "error", "{run}");
    let missing = docker.run(["--rm", BUSYBOX, "no-such-program"]).run()?;
    missing.exits(127)?;
    let denied = docker.run(["--rm", BUSYBOX, "/etc"]).run()?;
    denied.exits(126)?;
    let killed = docker
        .run([
            "--rm",
            BUSYBOX,
            "sh",
            "-c",
            "sleep 1000 & kill -9 $!; wait $!",
        ])
        .run()?;
    killed.exits(137)?;
    docker.stop()
}

/// The flags of `run` that make the container what it is.
fn flags(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let data = host.new_folder("data")?;
    fs::write(data.join("file"), "from the host\n")?;
    let volume = format!("{}:/data:ro", data.display());
    let script = "id -u; id -g; pwd; echo $A; hostname; cat /data/file; \
                  touch /x /data/x 2>&1 | grep -c Read-only; touch /scratch/x && echo tmpfs; \
                  grep CapEff /proc/self/status; ulimit -n; cat /proc/sys/net/ipv4/ip_forward";
    let run = docker
        .run([
            "--rm",
            "--user=1:2",
            "--workdir=/tmp",
            "--env=A=b",
            "--hostname=tower",
            "--read-only",
        ])
        .args([
            "--tmpfs=/scratch:mode=777",
            "--cap-drop=ALL",
            "--ulimit=nofile=99:99",
        ])
        .args(["--sysctl=net.ipv4.ip_forward=1", "--volume", &volume])
        .args([BUSYBOX, "sh", "-c", script])
        .run()?
        .ok()?;
    let expected =
        "1\n2\n/tmp\nb\ntower\nfrom the host\n2\ntmpfs\nCapEff:\t0000000000000000\n99\n1";
    ensure!(run.text() == expected, "{run}");
    let init = docker.run(["--rm", "--init", BUSYBOX, "ps"]).run()?.ok()?;
    contains(&init.text(), "docker-init")?;
    docker.stop()
}

fn exec(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let id = docker.run_detached([BUSYBOX, "sleep", "1000"])?;
    let exec = docker
        .command(["exec", "-i", "-e", "A=b", "-u", "1:2", "-w", "/tmp", &id])
        .args(["sh", "-c", "cat; echo $A; id -u; pwd; exit 5"])
        .input("in\n")
        .run()?
        .exits(5)?;
    ensure!(exec.text() == "in\nb\n1\n/tmp", "{exec}");
    let tty = docker.command(["exec", "-t", &id, "tty"]).run()?.ok()?;
    contains(&tty.text(), "/dev/pts/")?;
    docker
        .command(["exec", "-d", &id, "touch", "/mark"])
        .run()?
        .ok()?;
    until_true("the mark", SOON, || {
        let seen = docker.command(["exec", &id, "test", "-e", "/mark"]).run()?;
        Ok(seen.exit.shell() == 0)
    })?;
    let missing = docker.command(["exec", &id, "no-such-program"]).run()?;
    // Older engines say 126 whatever the reason.
    ensure!(matches!(missing.exit.shell(), 126 | 127), "{missing}");
    contains(&missing.text(), "executable file not found in $PATH")?;
    let top = docker.command(["top", &id]).run()?.ok()?;
    contains(&top.text(), "sleep 1000")?;
    ensure!(top.text().lines().count() == 2, "{top}");
    docker.command(["rm", "--force", &id]).run()?.ok()?;
    docker.stop()
}

fn pause_stats_and_update(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let id = docker.run_detached([
        "--memory=64m",
        "--cpus=1",
        "--pids-limit=50",
        BUSYBOX,
        "sleep",
        "1000",
    ])?;
    docker.command(["pause", &id]).run()?.ok()?;
    ensure!(docker.inspect(&id, "{{.State.Status}}")? == "paused");
    docker.command(["unpause", &id]).run()?.ok()?;
    ensure!(docker.inspect(&id, "{{.State.Status}}")? == "running");
    let format = "{{.MemUsage}} {{.PIDs}}";
    let stats = docker
        .command(["stats", "--no-stream", "--format", format, &id])
        .run()?
        .ok()?;
    let text = stats.text();
    let words: Vec<&str> = text.split_whitespace().collect();
    ensure!(
        words.len() == 4 && words[0] != "0B" && words[3] != "0",
        "{stats}"
    );
    let flags = [
        "update",
        "--memory=96m",
        "--memory-swap=96m",
        "--pids-limit=60",
        &id,
    ];
    docker.command(flags).run()?.ok()?;
    if host.runtime.is_vm() {
        let limits = docker
            .command([
                "exec",
                &id,
                "cat",
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/pids.max",
            ])
            .run()?
            .ok()?;
        ensure!(limits.text() == "100663296\n60", "{limits}");
    }
    docker.command(["rm", "--force", &id]).run()?.ok()?;
    docker.stop()
}

/// `cp` both ways, `commit`, `diff`, a volume of the engine.
fn files(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let id = docker.run_detached(["--volume=data:/data", BUSYBOX, "sleep", "1000"])?;
    let file = host.new_folder("files")?.join("file");
    fs::write(&file, "there and back\n")?;
    let (here, inside) = (
        file.to_string_lossy().into_owned(),
        format!("{id}:/tmp/file"),
    );
    docker.command(["cp", &here, &inside]).run()?.ok()?;
    docker
        .command([
            "exec",
            &id,
            "sh",
            "-c",
            "cat /tmp/file /tmp/file >/back; echo kept >/data/kept",
        ])
        .run()?
        .ok()?;
    docker
        .command(["cp", &format!("{id}:/back"), &here])
        .run()?
        .ok()?;
    ensure!(fs::read_to_string(&file)? == "there and back\nthere and back\n");
    let diff = docker.command(["diff", &id]).run()?.ok()?;
    contains(&diff.text(), "A /back")?;
    docker.command(["rm", "--force", &id]).run()?.ok()?;
    let kept = docker
        .run(["--rm", "--volume=data:/data", BUSYBOX, "cat", "/data/kept"])
        .run()?
        .ok()?;
    ensure!(kept.text() == "kept", "{kept}");
    docker.stop()
}

fn stop_kill_and_restart(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let id = docker.run_detached([BUSYBOX, "sh", "-c", script])?;
    let ready = |times: usize| {
        until_true("the handler", SOON, || {
            let logs = docker.command(["logs", &id]).run()?.ok()?;
            Ok(logs.text().matches("ready").count() == times)
        })
    };
    ready(1)?;
    docker.command(["stop", "--time=20", &id]).run()?.ok()?;
    ensure!(docker.inspect(&id, "{{.State.ExitCode}}")? == "3");
    docker.command(["start", &id]).run()?.ok()?;
    ready(2)?;
    docker.command(["restart", "--time=20", &id]).run()?.ok()?;
    ready(3)?;
    docker.command(["kill", &id]).run()?.ok()?;
    let waited = docker.command(["wait", &id]).run()?.ok()?;
    ensure!(waited.text() == "137", "{waited}");
    docker.command(["rm", &id]).run()?.ok()?;
    docker.stop()
}

fn restart_on_failure(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let id = docker.run_detached([
        "--restart=on-failure:2",
        BUSYBOX,
        "sh",
        "-c",
        "echo again; exit 4",
    ])?;
    until_true("two restarts", SOON, || {
        let state = docker.inspect(&id, "{{.RestartCount}} {{.State.Status}}")?;
        Ok(state == "2 exited")
    })?;
    let logs = docker.command(["logs", &id]).run()?.ok()?;
    ensure!(logs.text() == "again\nagain\nagain", "{logs}");
    docker.command(["rm", &id]).run()?.ok()?;
    docker.stop()
}

fn health_check(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let id = docker.run_detached([
        "--health-cmd=test -e /healthy",
        "--health-interval=500ms",
        "--health-retries=1",
        BUSYBOX,
        "sleep",
        "1000",
    ])?;
    let becomes = |state: &str| {
        until_true(state, SOON, || {
            Ok(docker.inspect(&id, "{{.State.Health.Status}}")? == state)
        })
    };
    becomes("unhealthy")?;
    docker
        .command(["exec", &id, "touch", "/healthy"])
        .run()?
        .ok()?;
    becomes("healthy")?;
    docker.command(["rm", "--force", &id]).run()?.ok()?;
    docker.stop()
}

/// What a container writes reaches who attaches, and the log.
fn attach_and_logs(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let create = docker.command(["create", "--network=none", "--interactive", BUSYBOX, "cat"]);
    let id = create.run()?.ok()?.text();
    let start = docker
        .command(["start", "--attach", "--interactive", &id])
        .input("line\n")
        .run()?
        .ok()?;
    ensure!(start.text() == "line", "{start}");
    ensure!(docker.command(["logs", &id]).run()?.ok()?.text() == "line");
    docker.command(["rm", &id]).run()?.ok()?;
    let id = docker.run_detached([BUSYBOX, "sh", "-c", "echo one; sleep 1; echo two"])?;
    let followed = docker.command(["logs", "--follow", &id]).run()?.ok()?;
    ensure!(followed.text() == "one\ntwo", "{followed}");
    docker.command(["rm", &id]).run()?.ok()?;
    docker.stop()
}

/// The steps of a build run with the runtime.
fn build(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let folder = host.new_folder("build")?;
    let recipe = format!(
        "FROM {BUSYBOX}\nRUN uname -r >/kernel && echo builder:x:77:77::/:/bin/sh >>/etc/passwd\nUSER builder\nRUN id -un >/tmp/name\n"
    );
    fs::write(folder.join("Dockerfile"), recipe)?;
    let path = folder.to_string_lossy().into_owned();
    docker
        .command(["build", "--quiet", "--network=none", "--tag=built", &path])
        .env("DOCKER_BUILDKIT", "0")
        .limit(Duration::from_secs(120))
        .run()?
        .ok()?;
    let built = docker
        .run(["--rm", "built", "sh", "-c", "cat /tmp/name /kernel"])
        .run()?
        .ok()?;
    let text = built.text();
    let kernel = text.lines().nth(1).context("the kernel")?;
    ensure!(text.starts_with("builder\n"), "{built}");
    ensure!(
        kernel.contains("casemate") == host.runtime.is_vm(),
        "{built}"
    );
    docker.stop()
}

/// The default network: a published port, the gateway, another container.
fn bridge(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    let serve = "mkdir -p /www && echo served >/www/index.html && exec httpd -f -p 80 -h /www";
    let run = [
        "run",
        "--detach",
        "--publish=127.0.0.1:8080:80",
        BUSYBOX,
        "sh",
        "-c",
        serve,
    ];
    let server = docker.command(run).run()?.ok()?.text();
    let fetch = || {
        let wget = docker.beside("busybox")?;
        wget.args(["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"])
            .run()
    };
    until_true("the published port", SOON, || {
        Ok(fetch()?.text() == "served")
    })?;
    let address = docker.inspect(&server, "{{.NetworkSettings.IPAddress}}")?;
    let script = format!(
        "ip -4 -o address show eth0 | grep -c 172.17.0.3/16; ip route | grep -c '^default via 172.17.0.1'; \
         wget -q -O - http://{address}/; ping -c 1 -W 5 172.17.0.1 >/dev/null && echo gateway"
    );
    let client = docker
        .command(["run", "--rm", BUSYBOX, "sh", "-c", &script])
        .run()?
        .ok()?;
    ensure!(client.text() == "1\n1\nserved\ngateway", "{client}");
    docker.command(["rm", "--force", &server]).run()?.ok()?;
    docker.stop()
}

/// What is of the host stays there, and it is said.
fn what_cannot_be(host: &Host) -> Result<()> {
    let docker = Docker::start(host)?;
    for (flag, word) in [
        ("--network=host", "network"),
        ("--pid=host", "pid"),
        ("--ipc=host", "ipc"),
    ] {
        let run = docker
            .command(["run", "--rm", flag, BUSYBOX, "true"])
            .run()?;
        if host.runtime.is_vm() {
            ensure!(run.exit.shell() == 125, "{run}");
            contains(&run.errors(), word)?;
        } else {
            run.ok()?;
        }
    }
    docker.stop()
}
