//! What a scenario has left behind.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::host::Host;
use crate::mounts::{self, Mount};
use crate::{cgroups, processes};

/// How long clients may take to clean up after their last command: podman
/// does it in a process that conmon starts.
const SETTLE: Duration = Duration::from_secs(5);

/// The state before the scenario.
pub struct Before {
    mounts: Vec<Mount>,
}

impl Before {
    /// Takes it down.
    pub fn now() -> Result<Before> {
        Ok(Before { mounts: mounts::own()? })
    }

    /// What there is now that was not there before, once nothing changes any
    /// more: one line each.
    pub fn leftovers(&self, host: &Host) -> Result<Vec<String>> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let found = self.look(host)?;
            if found.is_empty() || Instant::now() > deadline {
                return Ok(found);
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn look(&self, host: &Host) -> Result<Vec<String>> {
        let mut found: Vec<String> = processes::ours().iter().map(ToString::to_string).collect();
        found.extend(self.new_mounts(host)?);
        found.extend(groups(host));
        found.extend(files_of_runtimes());
        found.extend(entries("file", &host.temporary()));
        Ok(found)
    }

    fn new_mounts(&self, host: &Host) -> Result<Vec<String>> {
        let mut now = mounts::own()?;
        // Podman mounts its storage onto itself and leaves that where a run
        // has failed.
        let storage = host.dir.join("storage/overlay");
        now.retain(|mount| Path::new(&mount.point) != storage);
        for old in &self.mounts {
            if let Some(place) = now.iter().position(|new| new == old) {
                now.swap_remove(place);
            }
        }
        Ok(now.iter().map(|m| format!("mount {} ({})", m.point, m.kind)).collect())
    }
}

/// Cgroups of the scenario's containers. The parent itself and the group that
/// podman makes in it for conmon stay: that is podman's way.
fn groups(host: &Host) -> Vec<String> {
    let ours = |path: &Path| path.to_string_lossy().contains(&host.cgroup);
    let mut found = cgroups::find(ours);
    found.retain(|path| !path.ends_with(&host.cgroup) && !path.ends_with("conmon"));
    found.iter().map(|path| format!("cgroup {}", path.display())).collect()
}

/// Everything below `/run` but the folders that podman and runc keep.
fn files_of_runtimes() -> Vec<String> {
    const KEPT: [&str; 8] = [
        "containers", "libpod", "lock", "mount", "netns", "runc", "systemd", "casemate",
    ];
    let mut found = entries("file", Path::new("/run"));
    found.retain(|line| !KEPT.iter().any(|name| line.ends_with(&format!("/run/{name}"))));
    for folder in ["/run/netns", "/run/runc", "/run/casemate"] {
        found.extend(entries("file", Path::new(folder)));
    }
    found.retain(|line| !line.ends_with(TIER_CACHE));
    found
}

/// The verdict about the machine's virtualization, which is kept for the next
/// start and belongs to no sandbox.
const TIER_CACHE: &str = "/run/casemate/tier.json";

fn entries(what: &str, folder: &Path) -> Vec<String> {
    let Ok(list) = fs::read_dir(folder) else {
        return Vec::new();
    };
    list.flatten().map(|entry| format!("{what} {}", entry.path().display())).collect()
}
