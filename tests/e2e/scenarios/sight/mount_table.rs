//! A container's mount table without what differs between a host and a guest:
//! the type of disks, and cgroups: a guest's are of version 2, whatever the host
//! has, and a host's of version 1 are writable at the top.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use casemate_e2e::mounts::{self, Mount};
use casemate_e2e::{BUSYBOX, Podman};

/// The mounts by their mount point, and the paths that exist in the container.
pub(super) struct MountTable {
    mounts: BTreeMap<String, Vec<String>>,
    existing: Vec<String>,
}

/// What container engines hide or make read-only; not every kernel has it all.
const KERNEL_PATHS: &str = "/proc/* /sys/* /sys/dev/*";

/// The mount table of a container with these flags.
pub(super) fn seen(podman: &Podman<'_>, flags: &[&str]) -> Result<MountTable> {
    let script = format!("cat /proc/self/mountinfo; echo ---; ls -d {KERNEL_PATHS}");
    let arguments = ["--rm"]
        .iter()
        .chain(flags)
        .copied()
        .chain([BUSYBOX, "sh", "-c", &script]);
    let text = podman.run(arguments)?.run()?.ok()?.text();
    let (table, existing) = text.split_once("\n---\n").context("two parts of output")?;
    let mounts = mounts::parse(table)
        .iter()
        .filter(|mount| !mount.point.starts_with("/sys/fs/cgroup"))
        .map(|mount| (mount.point.clone(), properties(mount)))
        .collect();
    Ok(MountTable {
        mounts,
        existing: existing.lines().map(str::to_owned).collect(),
    })
}

fn properties(mount: &Mount) -> Vec<String> {
    const OF_MOUNTS: [&str; 5] = ["ro", "rw", "nosuid", "nodev", "noexec"];
    let mut found = vec![kind(mount).to_owned()];
    let of_mount = mount
        .options
        .iter()
        .filter(|option| OF_MOUNTS.contains(&option.as_str()));
    found.extend(of_mount.cloned());
    if is_memory(mount) || mount.kind == "devpts" {
        let keys = ["size=", "mode=", "uid=", "gid=", "ptmxmode="];
        let of_file_system = mount.super_options.iter();
        found.extend(
            of_file_system
                .filter(|o| keys.iter().any(|key| o.starts_with(key)))
                .cloned(),
        );
    }
    found.sort();
    found
}

/// A tmpfs of the container itself, not a folder of one on the host.
fn is_memory(mount: &Mount) -> bool {
    let hidden = mount.point.starts_with("/proc") || mount.point.starts_with("/sys");
    mount.kind == "tmpfs" && mount.root == "/" && mount.point != "/dev/shm" && !hidden
}

fn kind(mount: &Mount) -> &str {
    match mount.kind.as_str() {
        "proc" | "sysfs" | "devpts" | "mqueue" => &mount.kind,
        "tmpfs" if is_memory(mount) => "tmpfs",
        _ => "file or folder",
    }
}

impl MountTable {
    /// Demands a mount with these options.
    pub(super) fn has(&self, point: &str, options: &[&str]) -> Result<()> {
        let found = self
            .mounts
            .get(point)
            .with_context(|| format!("nothing is mounted at {point}"))?;
        let all = options
            .iter()
            .all(|option| found.iter().any(|o| o == option));
        ensure!(all, "{point} has {found:?} and should have {options:?}");
        Ok(())
    }

    /// Demands the same mounts, as far as the paths exist in both kernels.
    pub(super) fn same_as(&self, reference: &MountTable) -> Result<()> {
        casemate_e2e::expect::same(&self.shared_with(reference), &reference.shared_with(self))
    }

    fn shared_with(&self, other: &MountTable) -> String {
        let lines = self
            .mounts
            .iter()
            .filter(|(point, _)| other.may_have(point));
        lines
            .map(|(point, properties)| format!("{point} {}\n", properties.join(",")))
            .collect()
    }

    fn may_have(&self, point: &str) -> bool {
        let of_kernel = point.starts_with("/proc/") || point.starts_with("/sys/");
        !of_kernel || self.existing.iter().any(|path| path == point)
    }
}
