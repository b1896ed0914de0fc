//! What podman does with a container besides running it, and what it finds
//! where it looks: at the container's process and its cgroup.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Host, Podman, Scenario, cgroups, processes, scenarios};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        inspect_and_list,
        top_shows_no_host,
        process_of_the_container,
        cgroup_of_the_container,
        stop_gracefully,
        stop_by_force,
        start_again,
        restart,
        create_and_start_attached,
        remove_running,
        terminal,
        host_namespaces,
        automatic_cleanup,
    ]
}

/// A container in the background that ends at once when it is asked to. The
/// first process of a container does not see a signal before its handler is
/// there, so this waits until the container says that it is.
fn run_obedient(podman: &Podman<'_>, flags: &[&str]) -> Result<String> {
    let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let id = podman.run_detached([flags, &[BUSYBOX, "sh", "-c", script]].concat())?;
    until_true("the container's handler", Duration::from_secs(20), || {
        let logs = podman.command(["logs", &id])?.run()?.ok()?;
        Ok(logs.text().contains("ready"))
    })?;
    Ok(id)
}

fn inspect_and_list(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached(["--name=tower", BUSYBOX, "sleep", "1000"])?;
    ensure!(podman.inspect(&id, "{{.State.Status}} {{.State.Running}}")? == "running true");
    let runtime = podman.inspect(&id, "{{.OCIRuntime}}")?;
    ensure!(runtime == host.runtime.path.to_string_lossy(), "{runtime}");
    let listed = podman
        .command(["ps", "--format", "{{.Names}} {{.Status}}"])?
        .run()?
        .ok()?;
    contains(&listed.text(), "tower Up")?;
    podman.command(["kill", "tower"])?.run()?.ok()?;
    let waited = podman.command(["wait", "tower"])?.run()?.ok()?;
    ensure!(waited.text() == "137", "{waited}");
    ensure!(podman.inspect(&id, "{{.State.Status}} {{.State.ExitCode}}")? == "exited 137");
    podman.command(["rm", "tower"])?.run()?.ok()?;
    ensure!(
        podman
            .command(["ps", "--all", "--quiet"])?
            .run()?
            .ok()?
            .text()
            .is_empty()
    );
    Ok(())
}

/// Without arguments podman lists the processes of the PID namespace in which
/// the container's process is.
fn top_shows_no_host(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    let top = podman.command(["top", &id])?.run()?.ok()?;
    let lines = top.text().lines().count();
    ensure!(
        (2..=3).contains(&lines),
        "a header and the container were expected\n{top}"
    );
    for stranger in ["conmon", "podman", "e2e", "monitor", "qemu"] {
        ensure!(!top.text().contains(stranger), "{stranger} is shown\n{top}");
    }
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}

/// A client that looks at the process finds namespaces of the container, not
/// of the host.
fn process_of_the_container(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    let pid = podman.inspect(&id, "{{.State.Pid}}")?;
    for namespace in ["net", "pid", "mnt"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}"));
        ensure!(of(&pid)? != of("self")?, "{namespace} is the host's");
    }
    let joined = host
        .command("nsenter")
        .args(["--target", &pid, "--net", "cat", "/proc/net/dev"]);
    let interfaces = joined.run()?.ok()?.text();
    contains(&interfaces, "lo:")?;
    ensure!(!interfaces.contains("eth"), "{interfaces}");
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}

/// The process is in the cgroup that the client named: there it reads usage
/// and waits for the kernel's word about memory.
fn cgroup_of_the_container(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    let pid = podman.inspect(&id, "{{.State.Pid}}")?;
    let path = format!("/proc/{pid}/cgroup");
    let groups = fs::read_to_string(&path).context(path)?;
    let expected = format!("/{}/libpod-{id}", host.cgroup);
    for line in groups.lines() {
        let group = line.splitn(3, ':').nth(2).unwrap_or_default();
        ensure!(group == expected, "{expected} was expected\n{groups}");
    }
    let stats = podman.command([
        "stats",
        "--no-stream",
        "--format",
        "{{.PIDs}} {{.MemUsage}}",
        &id,
    ])?;
    let stats = stats.run()?.ok()?;
    let processes: u64 = stats.text().split(' ').next().unwrap_or_default().parse()?;
    ensure!(processes > 0, "{stats}");
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    let left = cgroups::find(|path| path.to_string_lossy().contains(&id));
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn stop_gracefully(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = run_obedient(&podman, &[])?;
    let stop = podman.command(["stop", "--time=20", &id])?.run()?.ok()?;
    ensure!(stop.took < Duration::from_secs(10), "{stop}");
    ensure!(podman.inspect(&id, "{{.State.ExitCode}}")? == "0");
    podman.command(["rm", &id])?.run()?.ok()?;
    Ok(())
}

/// A process that ignores the signal is killed when its time is over.
fn stop_by_force(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let id = podman.run_detached([BUSYBOX, "sh", "-c", script])?;
    podman.command(["stop", "--time=1", &id])?.run()?.ok()?;
    ensure!(podman.inspect(&id, "{{.State.ExitCode}}")? == "137");
    podman.command(["rm", &id])?.run()?.ok()?;
    Ok(())
}

/// A container keeps its files from one start to the next.
fn start_again(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script = "echo again >>/times; wc -l </times; exit 4";
    let id = podman.run_detached([BUSYBOX, "sh", "-c", script])?;
    podman.command(["wait", &id])?.run()?.ok()?;
    let second = podman
        .command(["start", "--attach", &id])?
        .run()?
        .exits(4)?;
    ensure!(second.text() == "2", "{second}");
    podman.command(["rm", &id])?.run()?.ok()?;
    Ok(())
}

fn restart(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = run_obedient(&podman, &[])?;
    let first = podman.inspect(&id, "{{.State.Pid}}")?;
    podman.command(["restart", "--time=10", &id])?.run()?.ok()?;
    let second = podman.inspect(&id, "{{.State.Pid}} {{.State.Status}}")?;
    ensure!(
        !second.starts_with(&format!("{first} ")) && second.ends_with("running"),
        "{first}, then {second}"
    );
    podman
        .command(["rm", "--force", "--time=5", &id])?
        .run()?
        .ok()?;
    Ok(())
}

fn create_and_start_attached(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman
        .create(["--interactive", BUSYBOX, "cat"])?
        .run()?
        .ok()?
        .text();
    let start = podman
        .command(["start", "--attach", "--interactive", &id])?
        .input("hello")
        .run()?
        .ok()?;
    ensure!(start.text() == "hello", "{start}");
    podman.command(["rm", &id])?.run()?.ok()?;
    Ok(())
}

fn remove_running(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    let refused = podman.command(["rm", &id])?.run()?;
    ensure!(refused.exit.shell() != 0, "{refused}");
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    podman.command(["inspect", &id])?.run()?.exits(125)?;
    Ok(())
}

/// A terminal of the container's own: one stream, lines that end as on one.
fn terminal(host: &Host) -> Result<()> {
    let script =
        "tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo own >/dev/tty; echo err >&2";
    let run = Podman::new(host)?
        .run(["--rm", "--tty", BUSYBOX, "sh", "-c", script])?
        .run()?
        .ok()?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    ensure!(text == "/dev/pts/0\r\nall\r\nown\r\nerr\r\n", "{run}");
    Ok(())
}

/// What a virtual machine cannot share is refused, with the reason.
fn host_namespaces(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let parent = format!("--cgroup-parent=/{}", host.cgroup);
    let network = "--network=none";
    let cases: [(&[&str], &str); 3] = [
        (&["--pid=host", network], "pid"),
        (&["--ipc=host", network], "ipc"),
        (&["--network=host"], "network"),
    ];
    for (flags, word) in cases {
        let arguments = [&["run", "--rm", &parent], flags, &[BUSYBOX, "true"]].concat();
        let run = podman.command(arguments)?.run()?;
        if host.runtime.is_vm() {
            ensure!(run.exit.shell() == 126 || run.exit.shell() == 125, "{run}");
            contains(&run.errors(), word)?;
        } else {
            run.ok()?;
        }
    }
    Ok(())
}

/// Podman cleans up behind a container in the background by itself.
fn automatic_cleanup(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = run_obedient(&podman, &["--rm"])?;
    let pid: i32 = podman.inspect(&id, "{{.State.Pid}}")?.parse()?;
    ensure!(processes::get(pid).is_some_and(|process| !process.is_dead()));
    podman.command(["stop", &id])?.run()?.ok()?;
    until_true("podman to remove it", Duration::from_secs(10), || {
        Ok(podman
            .command(["container", "exists", &id])?
            .run()?
            .exit
            .shell()
            == 1)
    })
}
