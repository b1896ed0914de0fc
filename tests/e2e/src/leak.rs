//! What a scenario has left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::host::Host;
use crate::mounts::{self, Mount};
use crate::{cgroups, processes, templates};

/// How long clients may take to clean up after their last command: podman
/// does it in a process that conmon starts.
pub const SETTLE: Duration = Duration::from_secs(5);

/// The state before the scenario.
pub struct Before {
    mounts: Vec<Mount>,
}

impl Before {
    /// Takes it down.
    pub fn now() -> Result<Before> {
        Ok(Before {
            mounts: mounts::own()?,
        })
    }

    /// What there is now that was not there before, unless it goes away
    /// before `settle` is over: one line each.
    pub fn leftovers(&self, host: &Host, settle: Duration) -> Result<Vec<String>> {
        templates::await_makers();
        let deadline = Instant::now() + settle;
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
        // So do podman and ip(8) with the folder of their network namespaces.
        now.retain(|mount| mount.point != "/run/netns");
        for old in &self.mounts {
            if let Some(place) = now.iter().position(|new| new == old) {
                now.swap_remove(place);
            }
        }
        Ok(now
            .iter()
            .map(|m| format!("mount {} ({})", m.point, m.kind))
            .collect())
    }
}

/// Cgroups of the scenario's containers. The parent itself and the groups that
/// podman makes in it for conmon and Docker for BuildKit stay: that is their way.
fn groups(host: &Host) -> Vec<String> {
    let ours = |path: &Path| path.to_string_lossy().contains(&host.cgroup);
    let mut found = cgroups::find(ours);
    let kept = [&*host.cgroup, "conmon", "buildkit"];
    found.retain(|path| !kept.iter().any(|name| path.ends_with(name)));
    found
        .iter()
        .map(|path| format!("cgroup {}", path.display()))
        .collect()
}

/// What podman and the runtimes keep below `/run` for themselves, not for a
/// container.
const KEPT: [&str; 8] = [
    "/run/containers",
    "/run/libpod",
    "/run/lock",
    "/run/mount",
    "/run/netns",
    "/run/runc",
    "/run/systemd",
    "/run/casemate",
];
/// The folders in them where each container has something.
const OF_CONTAINERS: [&str; 3] = ["/run/netns", "/run/runc", "/run/casemate/oci"];
/// What casemate has found out about the machine, for the next start.
const FACTS: &str = "/run/casemate/host.json";
/// Whose turn it is to start.
const TURNS: &str = "/run/casemate/turns";

/// Files of containers below `/run`, which was empty at the beginning.
fn files_of_runtimes() -> Vec<String> {
    let mut found = entries("file", Path::new("/run"));
    found.extend(entries("file", Path::new("/run/casemate")));
    let known = |line: &String| {
        let path = line.strip_prefix("file ").unwrap_or(line);
        KEPT.contains(&path)
            || OF_CONTAINERS.contains(&path)
            || [FACTS, TURNS, templates::STORE].contains(&path)
    };
    found.retain(|line| !known(line));
    for folder in OF_CONTAINERS {
        found.extend(entries("file", Path::new(folder)));
    }
    // Below the root of a containerd each of its namespaces has a folder.
    let (roots, mut found): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|line| line.starts_with("file /run/casemate/containerd"));
    for root in roots {
        for namespace in folders(Path::new(root.trim_start_matches("file "))) {
            found.extend(entries("file", &namespace));
        }
    }
    found
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(folder).into_iter().flatten().flatten();
    list.map(|entry| entry.path()).collect()
}

fn entries(what: &str, folder: &Path) -> Vec<String> {
    let Ok(list) = fs::read_dir(folder) else {
        return Vec::new();
    };
    list.flatten()
        .map(|entry| format!("{what} {}", entry.path().display()))
        .collect()
}
