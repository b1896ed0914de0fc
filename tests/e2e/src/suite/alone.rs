//! Work that is no scenario but has a scenario's place: a measurement.

use anyhow::{Result, anyhow, ensure};

use super::child::end_processes;
use super::run::Run;
use crate::host::{Host, cgroup_of};
use crate::runtime::{Kind, Runtime};
use crate::{cgroups, isolation, reaper};

/// Does `work` in a place like a scenario's, of which nothing is left. The
/// process must have one thread and no children, and starts none by itself
/// afterwards.
pub fn alone<T>(kind: Kind, work: impl FnOnce(&Host) -> Result<T>) -> Result<T> {
    let runtime = Runtime::find(kind).map_err(|why| anyhow!(why))?;
    let run = Run::new()?;
    let place = run.place("0")?;
    isolation::enter()?;
    reaper::start()?;
    let host = Host::new(runtime, place.clone(), run.shared())?;
    let done = work(&host);
    let done = done.map_err(|error| anyhow!("{error:#}\n{}", host.transcript()));
    end_processes();
    cgroups::remove(&cgroup_of(&place));
    let left = run.finish();
    let done = done?;
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    Ok(done)
}
