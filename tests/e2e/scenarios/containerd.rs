//! containerd with its own client and the runtime's shim, each scenario with an
//! engine of its own.

mod bad_input;
mod command_line;
mod disks;
mod exec;
mod insight;
mod killed;
mod life;
mod many;
mod network;
mod run;
mod service;
mod streams;
mod terminal;

use std::time::Duration;

use anyhow::Result;
pub(crate) use casemate_e2e::containerd::Release::{V16, V17, V21};
use casemate_e2e::containerd::{Ctr, Release};
use casemate_e2e::{BUSYBOX, Containerd, Scenario};

/// What a scenario does with an engine.
type Body = fn(&Containerd<'_>) -> Result<()>;

/// Names and functions, for the scenarios of a part.
macro_rules! bodies {
    ($($function:ident),+ $(,)?) => {
        vec![$((stringify!($function), $function as crate::containerd::Body)),+]
    };
}
use bodies;

const SOON: Duration = Duration::from_secs(30);

/// The scenarios with one engine. The oldest and the newest get those in which
/// it matters how they call a shim, the one between them a few; the others go
/// with the newest.
pub(crate) fn scenarios(release: Release) -> Vec<Scenario> {
    let mut parts = vec![run::scenarios(), life::scenarios(), killed::scenarios()];
    if release != V17 {
        parts.extend([
            exec::scenarios(),
            streams::scenarios(),
            terminal::scenarios(),
            service::scenarios(),
        ]);
    }
    if release == V21 {
        parts.extend([
            run::of_one_engine(),
            disks::of_one_engine(),
            life::of_one_engine(),
            exec::of_one_engine(),
            streams::of_one_engine(),
            terminal::of_one_engine(),
            many::of_one_engine(),
            network::of_one_engine(),
            service::of_one_engine(),
            bad_input::of_one_engine(),
            command_line::of_one_engine(),
        ]);
    }
    let all = parts.into_iter().flatten();
    let mut all: Vec<Scenario> = all
        .map(|(name, body)| scenario(release, name, body))
        .collect();
    let mut only_vm = vec![killed::only_vm()];
    if release == V21 {
        only_vm.extend(bad_input::only_vm());
        only_vm.extend(killed::only_vm_of_one_engine());
        only_vm.extend([
            command_line::only_vm(),
            insight::only_vm(),
            service::only_vm(),
        ]);
    }
    for (name, body, why) in only_vm {
        all.push(scenario(release, name, body).only_vm(why));
    }
    all
}

/// What every container goes through, with the newest engine.
pub(crate) fn basics() -> Vec<Scenario> {
    let parts = [run::scenarios(), life::scenarios()].concat();
    let basics = parts.into_iter();
    basics
        .map(|(name, body)| scenario(V21, name, body))
        .collect()
}

fn scenario(release: Release, name: &str, body: Body) -> Scenario {
    Scenario::new(name, move |host| {
        let containerd = Containerd::start(host, release)?;
        containerd.import("default", BUSYBOX)?;
        body(&containerd)?;
        containerd.stop()
    })
}

/// Removes a container whose client may have done it.
fn forget(ctr: &Ctr<'_, '_>, id: &str) -> Result<()> {
    let left = ctr.does(["containers", "ls", "-q"])?.text();
    if left.lines().any(|line| line == id) {
        ctr.remove(id)?;
    }
    Ok(())
}
