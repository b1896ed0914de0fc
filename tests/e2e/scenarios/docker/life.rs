//! A container from its start to its end: stop, kill, restart, pause, health.

use std::time::Duration;

use anyhow::{Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Docker};

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![stop_kill_and_restart, pause_and_sight, restart_and_health,]
}

fn stop_kill_and_restart(docker: &Docker<'_>) -> Result<()> {
    let script = "trap 'exit 3' TERM; trap 'echo hup' HUP; echo ready; while :; do sleep 0.1; done";
    let id = docker.run_detached([BUSYBOX, "sh", "-c", script])?;
    let says = |word: &str, times: usize| {
        until_true(word, SOON, || {
            let logs = docker.does(["logs", &id])?;
            Ok(logs.text().matches(word).count() == times)
        })
    };
    says("ready", 1)?;
    docker.does(["kill", "--signal=HUP", &id])?;
    says("hup", 1)?;
    let waiting = docker.command(["wait", &id]).start()?;
    let stop = docker.does(["stop", "--time=20", &id])?;
    ensure!(stop.took < Duration::from_secs(15), "{stop}");
    ensure!(waiting.finish()?.ok()?.text() == "3");
    ensure!(docker.inspect(&id, "{{.State.Status}} {{.State.ExitCode}}")? == "exited 3");
    docker.does(["start", &id])?;
    says("ready", 2)?;
    docker.does(["restart", "--time=20", &id])?;
    says("ready", 3)?;
    docker.does(["kill", &id])?;
    let waited = docker.does(["wait", &id])?;
    ensure!(waited.text() == "137", "{waited}");
    docker.remove(&[&id])?;
    // One that does not listen is ended by force.
    let id = docker.run_detached([BUSYBOX, "sleep", "1000"])?;
    docker.does(["stop", "--time=1", &id])?;
    ensure!(docker.inspect(&id, "{{.State.ExitCode}}")? == "137");
    docker.remove(&[&id])
}

/// Pause, and what a client sees of a container.
fn pause_and_sight(docker: &Docker<'_>) -> Result<()> {
    let id = docker.run_detached(["--name=tower", BUSYBOX, "sleep", "1000"])?;
    docker.does(["pause", &id])?;
    ensure!(docker.inspect(&id, "{{.State.Status}}")? == "paused");
    let refused = docker.command(["exec", &id, "true"]).run()?;
    ensure!(refused.exit.shell() != 0, "{refused}");
    docker.does(["unpause", &id])?;
    docker.does(["exec", &id, "true"])?;
    let told = docker.inspect(&id, "{{.Name}} {{.State.Status}} {{.HostConfig.Runtime}}")?;
    ensure!(told == "/tower running scenario", "{told}");
    let listed = docker.does(["ps", "--format", "{{.Names}} {{.Status}}"])?;
    contains(&listed.text(), "tower Up")?;
    let format = "{{.MemUsage}} {{.PIDs}}";
    let stats = docker.does(["stats", "--no-stream", "--format", format, &id])?;
    let text = stats.text();
    let words: Vec<&str> = text.split_whitespace().collect();
    ensure!(
        words.len() == 4 && words[0] != "0B" && words[3] != "0",
        "{stats}"
    );
    let top = docker.does(["top", &id, "-eo", "pid,args"])?;
    contains(&top.text(), "sleep 1000")?;
    docker.remove(&[&id])
}

/// What the engine does with a container by itself.
fn restart_and_health(docker: &Docker<'_>) -> Result<()> {
    restart_on_failure(docker)?;
    health_check(docker)
}

fn restart_on_failure(docker: &Docker<'_>) -> Result<()> {
    let script = "echo again; exit 4";
    let id = docker.run_detached(["--restart=on-failure:2", BUSYBOX, "sh", "-c", script])?;
    until_true("two restarts", SOON, || {
        let state = docker.inspect(&id, "{{.RestartCount}} {{.State.Status}}")?;
        Ok(state == "2 exited")
    })?;
    let logs = docker.does(["logs", &id])?;
    ensure!(logs.text() == "again\nagain\nagain", "{logs}");
    docker.remove(&[&id])
}

fn health_check(docker: &Docker<'_>) -> Result<()> {
    let id = docker.run_detached([
        "--health-cmd=test -e /healthy || { echo sick; false; }",
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
    let first = "{{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}";
    contains(&docker.inspect(&id, first)?, "1 sick")?;
    docker.does(["exec", &id, "touch", "/healthy"])?;
    becomes("healthy")?;
    docker.remove(&[&id])
}
