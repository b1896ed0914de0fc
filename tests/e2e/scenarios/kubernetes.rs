//! Pods as a kubelet runs them: by the Container Runtime Interface of a
//! containerd, each scenario with an engine of its own.

mod commands;
mod faults;
mod files;
mod life;
mod logs;
mod namespaces;
mod network;
mod refusals;
mod resources;
mod rights;
mod sandbox_service;
mod sandboxes;

use std::time::Duration;

use anyhow::{Result, ensure};
use casemate_e2e::containerd::Release;
use casemate_e2e::cri::Cri;
use casemate_e2e::{Containerd, Scenario};

/// What a scenario does with an engine and its client.
type Body = fn(&Containerd<'_>, &Cri<'_>) -> Result<()>;

/// Names and functions, for the scenarios of a part.
macro_rules! bodies {
    ($($function:ident),+ $(,)?) => {
        vec![$((stringify!($function), $function as crate::kubernetes::Body)),+]
    };
}
use bodies;

const SOON: Duration = Duration::from_secs(30);

/// The scenarios with one engine. Both get those in which it matters how they
/// call a shim; the others go with the newer one.
pub(crate) fn scenarios(release: Release) -> Vec<Scenario> {
    let mut all = [life::core(), commands::core(), faults::core()].concat();
    let mut only_vm = Vec::new();
    if release == Release::V21 {
        let parts = [
            life::scenarios(),
            commands::scenarios(),
            logs::scenarios(),
            network::scenarios(),
            namespaces::scenarios(),
            files::scenarios(),
            rights::scenarios(),
            resources::scenarios(),
            refusals::scenarios(),
        ];
        all.extend(parts.concat());
        only_vm.extend(namespaces::only_vm());
        only_vm.extend(faults::only_vm());
        only_vm.extend(refusals::only_vm());
    }
    let all = all.into_iter();
    let all = all.map(|(name, body)| scenario(release, name, body));
    let only_vm = only_vm.into_iter();
    let only_vm = only_vm.map(|(name, body, why)| scenario(release, name, body).only_vm(why));
    all.chain(only_vm).collect()
}

/// Those with pods by the Sandbox API, which the shim serves.
pub(crate) fn by_sandbox_api() -> Vec<Scenario> {
    const WHY: &str = "runc's shim does not start in a bundle without a configuration";
    let parts = [
        life::core(),
        life::scenarios(),
        commands::core(),
        faults::core(),
        network::scenarios(),
        namespaces::scenarios(),
        resources::core(),
        sandboxes::scenarios(),
        sandbox_service::scenarios(),
    ];
    let only_vm = [faults::only_vm(), refusals::only_vm()];
    let only_vm = only_vm.concat().into_iter();
    let only_vm = only_vm.map(|(name, body, _)| (name, body));
    let all = parts.concat().into_iter().chain(only_vm);
    let all = all.map(|(name, body)| {
        let scenario = with_engine(name, Release::V21, body, |containerd, cri| {
            cri.with_handler(containerd.sandbox_handler())
        });
        scenario.only_vm(WHY)
    });
    all.collect()
}

fn scenario(release: Release, name: &str, body: Body) -> Scenario {
    with_engine(name, release, body, |_, cri| cri)
}

fn with_engine(
    name: &str,
    release: Release,
    body: Body,
    client: for<'h> fn(&Containerd<'h>, Cri<'h>) -> Cri<'h>,
) -> Scenario {
    Scenario::new(name, move |host| {
        let containerd = Containerd::start(host, release)?;
        let cri = client(&containerd, Cri::of(&containerd)?);
        body(&containerd, &cri)?;
        cri.nothing_left()?;
        networks_are_gone(&containerd)?;
        containerd.stop()
    })
}

/// Demands that nothing is left of the pods' networks but the bridge.
fn networks_are_gone(containerd: &Containerd<'_>) -> Result<()> {
    let links = containerd.beside("ip").args(["-o", "link"]).run()?.ok()?;
    let links = links.text();
    let mut other = links.lines().filter(|line| {
        let name = line.split(' ').nth(1).unwrap_or_default();
        !["lo:", "cni0:"].contains(&name)
    });
    ensure!(other.next().is_none(), "interfaces are left:\n{links}");
    let ports = containerd.beside("iptables").args(["-t", "nat", "-S"]);
    let ports = ports.run()?.ok()?.text();
    ensure!(
        !ports.contains("--to-destination"),
        "ports are left:\n{ports}"
    );
    let mut addresses = containerd.addresses()?;
    addresses.retain(|name| name.starts_with("10."));
    ensure!(addresses.is_empty(), "addresses are left: {addresses:?}");
    Ok(())
}
