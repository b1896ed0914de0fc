//! Every client's sandboxes begin from a template, and no client was told.

use anyhow::{Result, ensure};
use casemate_e2e::containerd::Release::V21;
use casemate_e2e::cri::Cri;
use casemate_e2e::docker::Release;
use casemate_e2e::{BUSYBOX, Containerd, Docker, Host, Podman, Scenario, templates};

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("of_podman", podman),
        Scenario::new("of_docker20", |host| docker(host, Release::V20)),
        Scenario::new("of_docker28", |host| docker(host, Release::V28)),
        Scenario::new("of_ctr", ctr),
        Scenario::new("of_kubernetes", |host| pod(host, false)),
        Scenario::new("of_the_sandbox_api", |host| pod(host, true)),
    ]
}

/// The sandboxes that run now are clones, and so many.
fn all_are_clones(host: &Host, count: usize) -> Result<()> {
    let origins = templates::origins(host)?;
    ensure!(origins.len() == count, "{origins:?}");
    ensure!(origins.iter().all(Option::is_some), "{origins:?}");
    ensure!(templates::makers().is_empty());
    Ok(())
}

fn podman(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    all_are_clones(host, 1)?;
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}

fn docker(host: &Host, release: Release) -> Result<()> {
    let docker = Docker::start(host, release)?;
    let id = docker.run_detached([BUSYBOX, "sleep", "1000"])?;
    all_are_clones(host, 1)?;
    docker.remove(&[&id])?;
    docker.stop()
}

fn ctr(host: &Host) -> Result<()> {
    let containerd = Containerd::start(host, V21)?;
    containerd.import("default", BUSYBOX)?;
    let ctr = containerd.ctr();
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    all_are_clones(host, 1)?;
    ctr.remove(&id)?;
    containerd.stop()
}

fn pod(host: &Host, by_sandbox_api: bool) -> Result<()> {
    let containerd = Containerd::start(host, V21)?;
    let mut cri = Cri::of(&containerd)?;
    if by_sandbox_api {
        cri = cri.with_handler(containerd.sandbox_handler());
    }
    let pod = cri.pod("web").run()?;
    let container = pod.idle("one").start()?;
    ensure!(container.sh("echo here")? == "here");
    all_are_clones(host, 1)?;
    pod.end()?;
    cri.nothing_left()?;
    containerd.stop()
}
