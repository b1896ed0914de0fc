//! File systems of the whole sandbox, the share with the host above all.

use std::fs;

use casemate_linux::process::{Birth, spawn};
use casemate_protocol::{agent::Mount, paths::SHARE};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::sync,
};

use crate::{
    arrival::{self, until_seen},
    console::say,
    error::{Doing, Error, Result},
    limits,
    reaper::Reaper,
};

/// The file system of a share.
const VIRTIOFS: &str = "virtiofs";

/// Mounts a file system for the whole sandbox. A share may still be on its way: its
/// device is plugged while the guest runs.
pub(crate) async fn mount_in_guest(wanted: &Mount) -> Result<()> {
    let place = &wanted.destination;
    let what = || format!("error mounting {:?} at {place:?}", wanted.source);
    if wanted.source_is_file {
        fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(place)
            .doing(what)?;
    } else {
        fs::create_dir_all(place).doing(what)?;
    }
    let mounted = until_seen(arrival::LIMIT, || match attach(wanted) {
        Ok(()) => Ok(Some(())),
        // What the kernel says of a tag that no device has.
        Err(Errno::EINVAL) if wanted.fstype == VIRTIOFS => Ok(None),
        Err(errno) => Err(errno).doing(what),
    });
    mounted.await?.ok_or_else(|| Error::NoShare {
        tag: wanted.source.clone(),
        limit: arrival::LIMIT,
    })
}

fn attach(wanted: &Mount) -> nix::Result<()> {
    let mut flags = MsFlags::from_bits_retain(wanted.flags);
    if limits::is_bind(wanted) {
        flags |= MsFlags::MS_BIND;
    }
    mount(
        Some(wanted.source.as_str()),
        wanted.destination.as_str(),
        Some(wanted.fstype.as_str()),
        flags,
        Some(wanted.data.as_str()),
    )
}

/// Lets the host have the files of the share that nobody uses any more: as long
/// as they are remembered here, it cannot give up the mounts that they are on.
/// A remount that changes nothing does that, and for this file system alone.
pub(crate) fn forget_unused_files() -> Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, SHARE, NONE, MsFlags::MS_REMOUNT, NONE).doing(|| format!("remount {SHARE}"))
}

/// Unmounts the share and writes back every file system, in a process of its
/// own: a file server that is gone must not stop the agent.
pub(crate) async fn write_back(reaper: &Reaper) {
    let child = spawn(Birth::default(), || {
        // Not mounted, or somebody still uses it: the writing back counts.
        let _ = umount2(SHARE, MntFlags::MNT_DETACH);
        sync();
        0
    });
    match child {
        Ok(child) => drop(reaper.watch(child.pid()).reached().await),
        Err(error) => say(format_args!("write back: {error}")),
    }
}
