//! Docker engines with the runtime as their default, each scenario with an
//! engine of its own.

mod build;
mod files;
mod flags;
mod life;
mod limits;
mod network;
mod networks;
mod run;
mod shim;
mod terminal;

use std::time::Duration;

use anyhow::Result;
use casemate_e2e::docker::Release;
use casemate_e2e::{Docker, Scenario};

/// What a scenario does with an engine.
type Body = fn(&Docker<'_>) -> Result<()>;

/// Names and functions, for the scenarios of a part.
macro_rules! bodies {
    ($($function:ident),+ $(,)?) => {
        vec![$((stringify!($function), $function as crate::docker::Body)),+]
    };
}
use bodies;

const SOON: Duration = Duration::from_secs(30);

/// The scenarios with engines of one release.
pub(crate) fn scenarios(release: Release) -> Vec<Scenario> {
    let parts = [
        run::scenarios(),
        flags::scenarios(),
        life::scenarios(),
        terminal::scenarios(),
        files::scenarios(),
        limits::scenarios(),
        build::scenarios(),
        network::scenarios(),
        networks::scenarios(),
    ];
    let all = parts.into_iter().flatten();
    let mut all: Vec<Scenario> = all
        .map(|(name, body)| scenario(release, name, body))
        .collect();
    let only_vm = [
        flags::only_vm(),
        network::only_vm(),
        run::only_vm(),
        shim::only_vm(),
    ];
    for (name, body, why) in only_vm {
        all.push(scenario(release, name, body).only_vm(why));
    }
    all
}

fn scenario(release: Release, name: &str, body: Body) -> Scenario {
    Scenario::new(name, move |host| {
        let docker = Docker::start(host, release)?;
        body(&docker)?;
        docker.stop()
    })
}
