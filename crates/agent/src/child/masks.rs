//! Parts of /proc and /sys that a container shall not see or not change.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use casemate_linux::{
    bind::clone_at,
    mount::{attach, attr, set_attributes},
};
use nix::{
    mount::{MsFlags, mount},
    sys::stat::{SFlag, fstat},
    unistd::fchdir,
};

use super::root::{Root, clone_source};
use crate::error::{Doing, Result};

/// Covers paths: a file by the null device, a directory by an empty one. What
/// does not exist needs no cover.
pub(super) fn hide(root: &Root, paths: &[String]) -> Result<()> {
    // One file system for all directories: they stay empty.
    let mut empty = None;
    for path in paths {
        if let Some(place) = found(root, path)? {
            cover(root, path, place, &mut empty)?;
        }
    }
    Ok(())
}

fn cover(root: &Root, path: &str, place: OwnedFd, empty: &mut Option<OwnedFd>) -> Result<()> {
    let what = || format!("mask {path}");
    let stat = fstat(&place).doing(what)?;
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
        let null = clone_source("/dev/null", false)?;
        return attach(null.as_fd(), place.as_fd()).doing(what);
    }
    match empty {
        Some(empty) => clone_at(empty.as_fd(), false)
            .and_then(|copy| attach(copy.as_fd(), place.as_fd()))
            .doing(what),
        None => {
            fchdir(&place).doing(what)?;
            let flags = MsFlags::MS_RDONLY;
            mount(Some("tmpfs"), ".", Some("tmpfs"), flags, None::<&str>).doing(what)?;
            *empty = Some(root.find(path).doing(what)?);
            Ok(())
        }
    }
}

/// Makes paths read-only with what they show now. What does not exist needs
/// no protection.
pub(super) fn make_read_only(root: &Root, paths: &[String]) -> Result<()> {
    for path in paths {
        if let Some(place) = found(root, path)? {
            clone_at(place.as_fd(), true)
                .and_then(|copy| {
                    set_attributes(copy.as_fd(), attr::RDONLY, 0, MsFlags::empty(), false)?;
                    attach(copy.as_fd(), place.as_fd())
                })
                .doing(|| format!("make {path} read-only"))?;
        }
    }
    Ok(())
}

fn found(root: &Root, path: &str) -> Result<Option<OwnedFd>> {
    match root.find(path) {
        Ok(place) => Ok(Some(place)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).doing(|| format!("open {path}")),
    }
}
