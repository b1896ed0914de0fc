//! A container runs and gives back what it wrote and how it ended.

use anyhow::{Result, ensure};
use casemate_e2e::{BUSYBOX, DEBIAN, Host, Podman, Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        exit_code,
        another_image,
        end_by_signal,
        not_found,
        not_executable,
        detached_logs
    ]
}

/// The exit code comes back, both streams stay apart, and a VM has a kernel of
/// its own.
fn exit_code(host: &Host) -> Result<()> {
    let script = "uname -r; echo complaint >&2; exit 7";
    let run = Podman::new(host)?
        .run(["--rm", BUSYBOX, "sh", "-c", script])?
        .run()?
        .exits(7)?;
    let own_kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(
        (run.text() == own_kernel.trim()) != host.runtime.is_vm(),
        "kernel {}",
        run.text()
    );
    ensure!(run.errors() == "complaint", "{run}");
    Ok(())
}

/// An image of a whole distribution runs, too.
fn another_image(host: &Host) -> Result<()> {
    let run =
        Podman::new(host)?.run(["--rm", DEBIAN, "sh", "-c", ". /etc/os-release; echo $ID"])?;
    ensure!(run.run()?.ok()?.text() == "debian");
    Ok(())
}

/// The end by a signal is 128 and its number, as in a shell.
fn end_by_signal(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    podman.command(["kill", &id])?.run()?.ok()?;
    let waited = podman.command(["wait", &id])?.run()?.ok()?;
    ensure!(waited.text() == "137", "{waited}");
    podman.command(["rm", &id])?.run()?.ok()?;
    Ok(())
}

/// A program that is not there is exit code 127, as in a shell.
fn not_found(host: &Host) -> Result<()> {
    let run = Podman::new(host)?
        .run(["--rm", BUSYBOX, "/no/such/program"])?
        .run()?
        .exits(127)?;
    ensure!(run.errors().contains("/no/such/program"), "{run}");
    Ok(())
}

/// A program that cannot be executed is exit code 126, as in a shell.
fn not_executable(host: &Host) -> Result<()> {
    let run = Podman::new(host)?
        .run(["--rm", BUSYBOX, "/etc/passwd"])?
        .run()?
        .exits(126)?;
    ensure!(
        run.errors().to_lowercase().contains("permission denied"),
        "{run}"
    );
    Ok(())
}

/// What a container in the background writes is in its log, stream by stream.
fn detached_logs(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sh", "-c", "echo one; echo two >&2; exit 3"])?;
    let waited = podman.command(["wait", &id])?.run()?.ok()?;
    ensure!(waited.text() == "3", "{waited}");
    let logs = podman.command(["logs", &id])?.run()?.ok()?;
    ensure!(logs.text() == "one" && logs.errors() == "two", "{logs}");
    podman.command(["rm", &id])?.run()?.ok()?;
    Ok(())
}
