//! More processes in a running container: from the command line as conmon and
//! containerd's shim call it, and with podman.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::wait::{until, until_true};
use casemate_e2e::{
    BUSYBOX, Bundle, Container, Exit, Host, Podman, Scenario, processes, scenarios,
};
use serde_json::json;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        streams_and_exit_codes,
        sees_the_container,
        user_environment_and_directory,
        capabilities,
        from_a_file,
        detached,
        large_streams,
        many_at_once,
        outlived_by_its_container,
        ends_with_its_container,
        killed_by_a_signal,
        missing_program,
        bad_requests,
        with_podman,
        podman_terminal,
        podman_detached,
        podman_health_check,
    ];
    all.push(
        Scenario::new("killed_caller", killed_caller)
            .only_vm("runc's exec in the foreground is the parent of the process"),
    );
    all.push(
        Scenario::new("beside_an_init_that_moved", beside_an_init_that_moved)
            .only_vm("a container of runc's has no cgroup v2 of its own here"),
    );
    all
}

const SOON: Duration = Duration::from_secs(20);

/// A first process may make its cgroup a mere parent, as systemd does: who
/// comes later is put where that process is.
fn beside_an_init_that_moved(host: &Host) -> Result<()> {
    let script = "cd /sys/fs/cgroup && mkdir init && echo 1 >init/cgroup.procs && \
                  echo +pids >cgroup.subtree_control && echo moved && exec sleep 1000";
    let podman = Podman::new(host)?;
    let id = podman.run_detached(["--privileged", BUSYBOX, "sh", "-c", script])?;
    until_true("it to move", SOON, || {
        let logs = podman.command(["logs", &id])?.run()?.ok()?;
        Ok(logs.text() == "moved")
    })?;
    let exec = podman.command(["exec", &id, "cat", "/proc/self/cgroup"])?;
    let exec = exec.run()?.ok()?;
    ensure!(exec.text().ends_with("/init"), "{exec}");
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}

/// A container that does nothing.
fn idle(host: &Host) -> Result<Container<'_>> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    Container::run(host, &bundle)
}

fn streams_and_exit_codes(host: &Host) -> Result<()> {
    let container = idle(host)?;
    let script = "cat; echo error >&2; exit 7";
    let exec = host
        .oci(&["exec", &container.id, "sh", "-c", script])
        .input("hello\n")
        .run()?
        .exits(7)?;
    ensure!(exec.text() == "hello" && exec.errors() == "error", "{exec}");
    let silent = host.oci(&["exec", &container.id, "true"]).run()?.ok()?;
    ensure!(
        silent.stdout.is_empty() && silent.stderr.is_empty(),
        "{silent}"
    );
    container.delete_force()
}

/// It is in the namespaces of the container, root file system and all.
fn sees_the_container(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sh", "-c", "echo inside >/mark; sleep 1000"])?
        .edit(|spec| spec["hostname"] = json!("tower"))?;
    let container = Container::run(host, &bundle)?;
    let script = "until cat /mark; do sleep 0.1; done 2>/dev/null; hostname; cat /proc/1/cmdline; \
                  for n in pid mnt ipc uts; do \
                  test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) || echo other $n; done";
    let exec = host
        .oci(&["exec", &container.id, "sh", "-c", script])
        .run()?
        .ok()?;
    contains(&exec.text(), "inside\ntower\n")?;
    ensure!(!exec.text().contains("other"), "{exec}");
    container.delete_force()
}

fn user_environment_and_directory(host: &Host) -> Result<()> {
    let container = idle(host)?;
    let flags = [
        "exec",
        "--user",
        "1000:1001",
        "-g",
        "1002",
        "-g",
        "1003",
        "--env",
        "COLOUR=red",
        "--cwd",
        "/tmp",
        &container.id,
        "sh",
        "-c",
        "id -u; id -g; id -G; echo $COLOUR; pwd",
    ];
    let exec = host.oci(&flags).run()?.ok()?;
    ensure!(
        exec.text() == "1000\n1001\n1001 1002 1003\nred\n/tmp",
        "{exec}"
    );
    container.delete_force()
}

/// An exec has what its container has, and what it asks for.
fn capabilities(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?.edit(|spec| {
        spec["process"]["capabilities"] = json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN"],
            "effective": ["CAP_KILL"],
            "permitted": ["CAP_KILL", "CAP_CHOWN"],
        });
        spec["process"]["noNewPrivileges"] = json!(true);
    })?;
    let container = Container::run(host, &bundle)?;
    let show = ["grep", "-E", "Cap(Prm|Eff|Bnd)|NoNew", "/proc/self/status"];
    let like_init = host
        .oci(&[&["exec", &container.id][..], &show].concat())
        .run()?
        .ok()?;
    ensure!(
        words(&like_init.text())
            == "CapPrm: 0000000000000021 CapEff: 0000000000000021 CapBnd: 0000000000000021 NoNewPrivs: 1",
        "{like_init}"
    );
    let more = host
        .oci(&[&["exec", "--cap", "CAP_NET_RAW", &container.id][..], &show].concat())
        .run()?
        .ok()?;
    contains(&words(&more.text()), "CapBnd: 0000000000002021")?;
    container.delete_force()
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// As clients send it: the whole process in a file.
fn from_a_file(host: &Host) -> Result<()> {
    let container = idle(host)?;
    let file = host.new_folder("exec")?.join("process.json");
    let process = json!({
        "args": ["sh", "-c", "echo $0 $A; id -u"],
        "env": ["A=b", "PATH=/bin"],
        "cwd": "/",
        "user": {"uid": 3, "gid": 4},
    });
    fs::write(&file, process.to_string())?;
    let file = file.to_string_lossy().into_owned();
    let exec = host
        .oci(&["exec", "--process", &file, &container.id])
        .run()?
        .ok()?;
    ensure!(exec.text() == "sh b\n3", "{exec}");
    container.delete_force()
}

/// Returns at once; the process behind the pid file ends as its own does.
fn detached(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    let bundle = Bundle::new(host, &["sleep", "1000"])?.bind(&data.to_string_lossy(), "/data")?;
    let container = Container::run(host, &bundle)?;
    let pid_file = host.new_folder("exec")?.join("pid");
    let path = pid_file.to_string_lossy().into_owned();
    let script = "until test -e /data/go; do sleep 0.1; done; touch /data/done";
    let flags = [
        "exec",
        "--detach",
        "--pid-file",
        &path,
        &container.id,
        "sh",
        "-c",
        script,
    ];
    let exec = host.oci(&flags).start()?;
    ensure!(exec.exit()? == Exit::Code(0));
    let pid: i32 = fs::read_to_string(&pid_file)?.parse()?;
    let alive = || processes::get(pid).is_some_and(|process| !process.is_dead());
    ensure!(alive());
    fs::write(data.join("go"), "")?;
    until_true("the exec to end", SOON, || Ok(!alive()))?;
    ensure!(data.join("done").exists());
    exec.finish()?.ok()?;
    container.delete_force()
}

/// A reader that starts late loses nothing.
fn large_streams(host: &Host) -> Result<()> {
    let container = idle(host)?;
    let bytes: Vec<u8> = (0..8_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let exec = host
        .oci(&["exec", &container.id, "cat"])
        .input(bytes.clone())
        .limit(Duration::from_secs(60))
        .run()?
        .ok()?;
    ensure!(
        exec.stdout == bytes,
        "{} bytes came back",
        exec.stdout.len()
    );
    container.delete_force()
}

fn many_at_once(host: &Host) -> Result<()> {
    let container = idle(host)?;
    let mut running = Vec::new();
    for number in 0..8 {
        let script = format!("echo {number}; sleep 0.5; exit {number}");
        running.push(
            host.oci(&["exec", &container.id, "sh", "-c", &script])
                .start()?,
        );
    }
    for (number, exec) in running.into_iter().enumerate() {
        let exec = exec.finish()?.exits(number as i32)?;
        ensure!(exec.text() == number.to_string(), "{exec}");
    }
    container.delete_force()
}

fn outlived_by_its_container(host: &Host) -> Result<()> {
    let container = idle(host)?;
    for _ in 0..3 {
        host.oci(&["exec", &container.id, "true"]).run()?.ok()?;
    }
    ensure!(container.status()? == "running");
    container.delete_force()
}

/// The end of the container is the end of what was added to it.
fn ends_with_its_container(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sh", "-c", "read line; exit 3"])?;
    let mut container = Container::create_with(host, &bundle, |create| create.input_by_hand())?;
    container.start()?;
    let exec = host
        .oci(&["exec", &container.id, "sh", "-c", "echo here; sleep 1000"])
        .start()?;
    until_true("the exec to run", SOON, || Ok(exec.written() == b"here\n"))?;
    drop(container.streams().stdin.take());
    exec.finish()?.exits(137)?;
    container.wait(SOON)?;
    container.delete()
}

fn killed_by_a_signal(host: &Host) -> Result<()> {
    let container = idle(host)?;
    host.oci(&["exec", &container.id, "sh", "-c", "kill -9 $$"])
        .run()?
        .exits(137)?;
    // The caller's signals go on to the process.
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let exec = host
        .oci(&["exec", &container.id, "sh", "-c", script])
        .start()?;
    until_true("the handler", SOON, || Ok(exec.written() == b"ready\n"))?;
    exec.signal(nix::sys::signal::Signal::SIGTERM)?;
    exec.finish()?.exits(9)?;
    container.delete_force()
}

fn missing_program(host: &Host) -> Result<()> {
    let container = idle(host)?;
    let exec = host
        .oci(&["exec", &container.id, "no-such-program"])
        .run()?
        .exits(255)?;
    contains(&exec.errors(), "executable file not found in $PATH")?;
    let denied = host.oci(&["exec", &container.id, "/etc"]).run()?;
    ensure!(denied.exit.shell() == 255, "{denied}");
    ensure!(container.status()? == "running");
    container.delete_force()
}

fn bad_requests(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["true"])?;
    let unknown = host.oci(&["exec", "nobody", "true"]).run()?;
    ensure!(unknown.exit.shell() != 0);
    contains(&one_clear_line(&unknown)?, "does not exist")?;
    let container = Container::run(host, &bundle)?;
    container.wait(SOON)?;
    until_true("the end", SOON, || Ok(container.status()? == "stopped"))?;
    let stopped = host
        .oci(&["exec", &container.id, "true"])
        .run()?
        .exits(255)?;
    contains(&one_clear_line(&stopped)?, "stopped container")?;
    container.delete()?;

    let container = idle(host)?;
    let file = host.new_folder("exec")?.join("process.json");
    for (text, reason) in [
        ("{", "EOF"),
        ("{\"args\": [], \"cwd\": \"/\"}", "args"),
        ("{\"args\": [\"true\"], \"cwd\": \"tmp\"}", "absolute"),
    ] {
        fs::write(&file, text)?;
        let path = file.to_string_lossy().into_owned();
        let refused = host
            .oci(&["exec", "--process", &path, &container.id])
            .run()?;
        ensure!(refused.exit.shell() != 0, "{refused}");
        if host.runtime.is_vm() {
            contains(&one_clear_line(&refused)?, reason)?;
        }
    }
    for flags in [
        &["exec", "--process", "/no/such/file"][..],
        &[
            "exec",
            "--console-socket",
            "/no/such/socket",
            "--tty",
            "--detach",
        ],
    ] {
        let refused = host
            .oci(&[flags, &[&container.id, "true"]].concat())
            .run()?;
        ensure!(refused.exit.shell() != 0, "{refused}");
    }
    host.oci(&["exec", &container.id, "true"]).run()?.ok()?;
    container.delete_force()
}

/// A caller that is killed before its process runs leaves none; later it is
/// the process's own affair.
fn killed_caller(host: &Host) -> Result<()> {
    let container = idle(host)?;
    for delay in [0, 5, 10, 20, 40] {
        let mut exec = host
            .oci(&["exec", &container.id, "sleep", "1000"])
            .output_by_hand()
            .start()?;
        std::thread::sleep(Duration::from_millis(delay));
        exec.signal(nix::sys::signal::Signal::SIGKILL)?;
        exec.exit()?;
        drop(exec.stdin.take());
    }
    host.oci(&["exec", &container.id, "true"]).run()?.ok()?;
    container.delete_force()
}

fn with_podman(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    let exec = podman
        .command([
            "exec",
            "-i",
            "-e",
            "A=b",
            "-u",
            "1:2",
            "-w",
            "/tmp",
            &id,
            "sh",
            "-c",
            "cat; echo $A; id -u; id -g; pwd; exit 5",
        ])?
        .input("in\n")
        .run()?
        .exits(5)?;
    ensure!(exec.text() == "in\nb\n1\n2\n/tmp", "{exec}");
    let missing = podman.command(["exec", &id, "no-such-program"])?.run()?;
    ensure!(missing.exit.shell() == 127, "{missing}");
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}

/// A terminal with its size, in raw mode on our side.
fn podman_terminal(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    let exec = podman
        .command(["exec", "-t", &id, "sh", "-c", "tty; echo error >&2"])?
        .run()?
        .ok()?;
    contains(&exec.text(), "/dev/pts/")?;
    ensure!(exec.stdout.ends_with(b"error\r\n"), "{exec}");
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}

fn podman_detached(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    podman
        .command(["exec", "-d", &id, "sh", "-c", "echo here >/mark"])?
        .run()?
        .ok()?;
    let mark = until("the mark", SOON, || {
        let mark = podman.command(["exec", &id, "cat", "/mark"])?.run()?;
        Ok((mark.text() == "here").then_some(mark))
    });
    mark.context("detached exec")?;
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}

fn podman_health_check(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([
        "--health-cmd=test -e /healthy",
        "--health-interval=disable",
        "--health-retries=1",
        BUSYBOX,
        "sleep",
        "1000",
    ])?;
    let check = || podman.command(["healthcheck", "run", &id])?.run();
    ensure!(check()?.exit.shell() == 1);
    podman
        .command(["exec", &id, "touch", "/healthy"])?
        .run()?
        .ok()?;
    check()?.ok()?;
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}
