//! The mounts of a container, in the order of its specification.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use casemate_linux::mount::{attach, attr, set_attributes};
use casemate_protocol::agent::{ContainerSpec, Mount};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    unistd::fchdir,
};

use super::{
    copy_up,
    namespaces::{Kinds, Plan},
    root::{Root, clone_source, set_propagation},
};
use crate::{
    error::{Doing, Result},
    limits::is_bind,
};

/// Flags of mount(2) and what they are for mount_setattr(2).
const ATTRIBUTES: [(MsFlags, u64); 6] = [
    (MsFlags::MS_RDONLY, attr::RDONLY),
    (MsFlags::MS_NOSUID, attr::NOSUID),
    (MsFlags::MS_NODEV, attr::NODEV),
    (MsFlags::MS_NOEXEC, attr::NOEXEC),
    (MsFlags::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
    (MsFlags::from_bits_retain(256), libc::MOUNT_ATTR_NOSYMFOLLOW),
];

/// Trees of the guest that a container is made of, as detached copies: opened
/// before anything else happens, since later the process may lack the right to
/// reach them.
pub(super) struct Sources {
    pub(super) rootfs: OwnedFd,
    /// For each mount of the specification: what is bound there, if it is a
    /// bind mount.
    pub(super) bound: Vec<Option<OwnedFd>>,
}

impl Sources {
    /// Opens the root file system and every bind mount's source. `cgroup` is
    /// the directory of the container's cgroup.
    pub(super) fn open(spec: &ContainerSpec, plan: &Plan, cgroup: &Path) -> Result<Self> {
        let rootfs = clone_source(&spec.rootfs, true)?;
        let own_cgroups = plan.kinds().contains(Kinds::CLONE_NEWCGROUP);
        let source = |mount: &Mount| match mount.fstype.as_str() {
            _ if is_bind(mount) => clone_source(&mount.source, is_recursive(mount)).map(Some),
            // Without a cgroup namespace the container sees its own cgroup all
            // the same, and nobody else's.
            "cgroup" | "cgroup2" if !own_cgroups => {
                clone_source(&cgroup.to_string_lossy(), false).map(Some)
            }
            "sysfs" => plan
                .sysfs()
                .map(|tree| {
                    tree.try_clone_to_owned()
                        .doing(|| "copy a descriptor".into())
                })
                .transpose(),
            _ => Ok(None),
        };
        let bound = spec.mounts.iter().map(source).collect::<Result<_>>()?;
        Ok(Self { rootfs, bound })
    }
}

/// Mounts that become read-only when everything is in place below them.
#[derive(Default)]
pub(super) struct ReadOnlyLater(Vec<OwnedFd>);

impl ReadOnlyLater {
    pub(super) fn make_read_only(self) -> Result<()> {
        for place in self.0 {
            set_attributes(place.as_fd(), attr::RDONLY, 0, MsFlags::empty(), false)
                .doing(|| "make a mount read-only".into())?;
        }
        Ok(())
    }
}

/// The specification binds a /dev of its own: it is used as it is.
pub(super) fn dev_is_bound(mounts: &[Mount]) -> bool {
    mounts
        .iter()
        .any(|mount| is_bind(mount) && mount.destination.trim_end_matches('/') == "/dev")
}

/// Mounts everything. `bound` are the sources of the same mounts.
pub(super) fn mount_all(
    root: &Root,
    mounts: &[Mount],
    bound: Vec<Option<OwnedFd>>,
) -> Result<ReadOnlyLater> {
    let mut later = ReadOnlyLater::default();
    for (mount, source) in mounts.iter().zip(bound) {
        let what = || {
            format!(
                "error mounting {:?} to rootfs at {:?}",
                mount.source, mount.destination
            )
        };
        match source {
            Some(tree) => bind(root, mount, tree).doing(what)?,
            None => {
                let place = make_file_system(root, mount).doing(what)?;
                if is_late(mount) {
                    later.0.push(place);
                }
            }
        }
    }
    Ok(later)
}

/// A tmpfs holds mount points and devices that are still to be made.
fn is_late(mount: &Mount) -> bool {
    mount.fstype == "tmpfs" && flags(mount).contains(MsFlags::MS_RDONLY)
}

fn flags(mount: &Mount) -> MsFlags {
    MsFlags::from_bits_retain(mount.flags)
}

fn is_recursive(mount: &Mount) -> bool {
    flags(mount).contains(MsFlags::MS_REC)
}

/// Attaches a detached tree. Its attributes are set before it can be seen.
fn bind(root: &Root, mount: &Mount, tree: OwnedFd) -> io::Result<()> {
    let place = match mount.source_is_file {
        true => root.make_file(&mount.destination)?,
        false => root.make_directory(&mount.destination)?,
    };
    let (set, clear) = attributes(flags(mount));
    if set | clear != 0 {
        set_attributes(tree.as_fd(), set, clear, MsFlags::empty(), false)?;
    }
    finish(mount, &tree)?;
    attach(tree.as_fd(), place.as_fd())
}

/// Mounts a file system and tells where.
fn make_file_system(root: &Root, spec: &Mount) -> io::Result<OwnedFd> {
    // A directory that was made for the mount has no mode that anyone chose.
    let existed = root.find(&spec.destination).is_ok();
    let place = place_for_file_system(root, spec)?;
    let mut flags = flags(spec);
    if is_late(spec) {
        flags -= MsFlags::MS_RDONLY;
    }
    let fstype = match spec.fstype.as_str() {
        "cgroup" => "cgroup2",
        other => other,
    };
    // By the working directory, so that no path is looked up again.
    fchdir(&place)?;
    mount(
        Some(spec.source.as_str()),
        ".",
        Some(fstype),
        flags,
        Some(spec.data.as_str()),
    )?;
    let mounted = root.find(&spec.destination)?;
    if spec.copy_up {
        copy_up::copy(place.as_fd(), mounted.as_fd(), existed)?;
    }
    finish(spec, &mounted)?;
    Ok(mounted)
}

fn place_for_file_system(root: &Root, spec: &Mount) -> io::Result<OwnedFd> {
    let place = root.make_directory(&spec.destination)?;
    if matches!(spec.fstype.as_str(), "proc" | "sysfs") {
        // An image must not lead these elsewhere by a link: what relies on
        // /proc (masked paths, sysctls) would find another one.
        let plain = libc::O_PATH | libc::O_NOFOLLOW | libc::O_DIRECTORY;
        return root
            .open(&spec.destination, plain)
            .map_err(|_| Errno::ENOTDIR.into());
    }
    Ok(place)
}

/// Propagation and recursive attributes, which mount(2) does not take along.
fn finish(mount: &Mount, at: &OwnedFd) -> io::Result<()> {
    if mount.recursive_set | mount.recursive_clear != 0 {
        let (set, clear) = (mount.recursive_set, mount.recursive_clear);
        set_attributes(at.as_fd(), set, clear, MsFlags::empty(), true)?;
    }
    if mount.propagation != 0 {
        set_propagation(at.as_fd(), mount.propagation)?;
    }
    Ok(())
}

/// Flags of mount(2) as attributes to set and to clear.
fn attributes(flags: MsFlags) -> (u64, u64) {
    let set = ATTRIBUTES
        .iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .fold(0, |set, (_, attribute)| set | attribute);
    // Access times are one choice of three: the old one is cleared first.
    let access_time = if flags.contains(MsFlags::MS_NOATIME) {
        Some(libc::MOUNT_ATTR_NOATIME)
    } else if flags.contains(MsFlags::MS_STRICTATIME) {
        Some(libc::MOUNT_ATTR_STRICTATIME)
    } else if flags.contains(MsFlags::MS_RELATIME) {
        Some(libc::MOUNT_ATTR_RELATIME)
    } else {
        None
    };
    match access_time {
        Some(choice) => (set | choice, libc::MOUNT_ATTR__ATIME),
        None => (set, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_flags_become_attributes() {
        let (set, clear) = attributes(MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | MsFlags::MS_BIND);
        assert_eq!((set, clear), (attr::RDONLY | attr::NOEXEC, 0));
        let (set, clear) = attributes(MsFlags::MS_NOATIME);
        assert_eq!(
            (set, clear),
            (libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME)
        );
    }

    #[test]
    fn a_bound_dev_is_recognized() {
        let at = |destination: &str, fstype: &str| Mount {
            destination: destination.into(),
            fstype: fstype.into(),
            ..Mount::default()
        };
        assert!(dev_is_bound(&[at("/dev/", "bind")]));
        assert!(!dev_is_bound(&[
            at("/dev", "tmpfs"),
            at("/dev/shm", "bind")
        ]));
    }
}
