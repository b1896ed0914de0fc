//! Device nodes and links in the container's /dev.

use std::{io, os::fd::AsFd, path::Path};

use casemate_linux::mount::attach;
use casemate_protocol::agent::{Device, device::Kind};
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{Mode, SFlag, makedev, mknodat},
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat},
};

use super::root::{Root, clone_source};
use crate::error::{Doing, Result};

/// Devices that every container has (OCI runtime spec, "Default Devices"):
/// name in /dev, major, minor.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// The kernel's memory as a core file.
const KCORE: &str = "/proc/kcore";

/// Links that every container has (ibidem, and "Dev symbolic links"): name in
/// /dev, target.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", KCORE),
    ("ptmx", "pts/ptmx"),
];

/// Makes the default devices, those of the specification, which may be the
/// same ones with other owners, and the links. In a user namespace nodes
/// cannot be made: the guest's are bound instead.
pub(super) fn make_all(root: &Root, devices: &[Device], in_user_namespace: bool) -> Result<()> {
    let asked = |path: &str| devices.iter().any(|device| device.path == path);
    let default = DEFAULT
        .iter()
        .map(|&(name, major, minor)| Device {
            path: format!("/dev/{name}"),
            major,
            minor,
            mode: 0o666,
            ..Device::default()
        })
        .filter(|device| !asked(&device.path));
    for device in default.chain(devices.iter().cloned()) {
        let made = match in_user_namespace {
            true => bind(root, &device),
            false => make(root, &device).doing(|| format!("mknod {}", device.path)),
        };
        made?;
    }
    make_links(root).doing(|| "link in /dev".into())
}

fn make(root: &Root, device: &Device) -> io::Result<()> {
    let path = Path::new(&device.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL.into());
    };
    let parent = root.make_directory(&parent.to_string_lossy())?;
    let kind = match device.kind.enum_value_or_default() {
        Kind::CHAR => SFlag::S_IFCHR,
        Kind::BLOCK => SFlag::S_IFBLK,
        Kind::FIFO => SFlag::S_IFIFO,
    };
    let mode = Mode::from_bits_truncate(device.mode);
    let number = makedev(device.major.into(), device.minor.into());
    match mknodat(&parent, name, kind, mode, number) {
        // A rootfs that has one already keeps it, as with runc.
        Err(Errno::EEXIST) => return Ok(()),
        other => other?,
    }
    if (device.uid, device.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        fchownat(
            &parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
    }
    Ok(())
}

fn bind(root: &Root, device: &Device) -> Result<()> {
    let source = clone_source(&device.path, false)?;
    root.make_file(&device.path)
        .and_then(|place| attach(source.as_fd(), place.as_fd()))
        .doing(|| format!("bind {}", device.path))
}

fn make_links(root: &Root) -> io::Result<()> {
    let dev = root.make_directory("/dev")?;
    // Not every kernel shows its memory there.
    let exists = |target: &str| target != KCORE || Path::new(KCORE).exists();
    for (name, target) in LINKS.into_iter().filter(|(_, target)| exists(target)) {
        match symlinkat(target, &dev, name) {
            // An image may hold a ptmx of the time before devpts instances.
            Err(Errno::EEXIST) if name == "ptmx" => {
                unlinkat(&dev, name, UnlinkatFlags::NoRemoveDir)?;
                symlinkat(target, &dev, name)?;
            }
            Err(Errno::EEXIST) => {}
            other => other?,
        }
    }
    Ok(())
}
