//! The runtime named as a shim, without any configuration of the engine.

use anyhow::{Result, ensure};
use casemate_e2e::docker::Release;
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Docker};

use super::{Body, SOON};

pub(super) fn only_vm() -> (&'static str, Body, &'static str) {
    (
        "as_a_shim",
        as_a_shim,
        "runc's shim is what the engine has by itself",
    )
}

const RUNTIME: &str = "--runtime=io.containerd.casemate.v2";

/// Engines since 23 take any shim that their containerd finds.
fn as_a_shim(docker: &Docker<'_>) -> Result<()> {
    let run = docker.run(["--rm", RUNTIME, BUSYBOX, "sh", "-c", "uname -r; exit 7"]);
    let run = run.run()?;
    if docker.release == Release::V20 {
        ensure!(run.exit.shell() == 125, "{run}");
        contains(&run.errors(), "Unknown runtime")?;
        docker.run(["--rm", BUSYBOX, "true"]).run()?.ok()?;
        return Ok(());
    }
    ensure!(run.exit.shell() == 7, "{run}");
    contains(&run.text(), "casemate")?;
    let cat = docker.run(["--rm", "--interactive", RUNTIME, BUSYBOX, "cat"]);
    let cat = cat.input("in\n").run()?.ok()?;
    ensure!(cat.text() == "in", "{cat}");
    let detached = ["run", "--detach", RUNTIME, BUSYBOX];
    let server = ["sh", "-c", "echo ready; sleep 1000"];
    let id = docker.does([&detached[..], &server].concat())?.text();
    until_true("the log", SOON, || {
        Ok(docker.does(["logs", &id])?.text() == "ready")
    })?;
    let seen = docker.does(["exec", &id, "ip", "route"])?;
    contains(&seen.text(), "default via")?;
    docker
        .command(["exec", &id, "sh", "-c", "exit 5"])
        .run()?
        .exits(5)?;
    let top = docker.does(["top", &id])?;
    ensure!(top.text().lines().count() == 2, "{top}");
    docker.does(["pause", &id])?;
    docker.does(["unpause", &id])?;
    docker.does(["stop", "--time=0", &id])?;
    ensure!(docker.inspect(&id, "{{.State.ExitCode}}")? == "137");
    docker.does(["start", &id])?;
    docker.remove(&[&id])
}
