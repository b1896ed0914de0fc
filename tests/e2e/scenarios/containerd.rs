//! containerd with its own client and the runtime's shim, each scenario with an
//! engine of its own.

mod run;

use std::time::Duration;

use anyhow::Result;
use casemate_e2e::containerd::Release;
pub(crate) use casemate_e2e::containerd::Release::{V16, V21};
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

/// The scenarios with one engine. Both get those in which it matters how they
/// call a shim; the others go with the newer one.
pub(crate) fn scenarios(release: Release) -> Vec<Scenario> {
    let mut all = run::scenarios();
    if release == V21 {
        all.extend(run::of_one_engine());
    }
    all.into_iter()
        .map(|(name, body)| scenario(release, name, body))
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
