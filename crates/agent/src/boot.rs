//! From the initramfs to a system that containers can be made in.
//!
//! Little is done, because every start of every container waits for it: no
//! device node is needed to reach the host, so [`crate::main`] dials first and
//! comes here while the host answers.

use std::{fs, path::Path};

use nix::{
    mount::{MsFlags, mount},
    unistd::{chdir, chroot},
};

use crate::error::{Doing, Result};

/// Where the kernel has unpacked the agent.
const INIT: &str = "/init";

/// Stage for the new root; a directory of the initramfs.
const STAGE: &str = "/newroot";

/// File systems below the new root: type, directory, options.
const FILE_SYSTEMS: [(&str, &str, &str); 5] = [
    ("proc", "proc", ""),
    ("sysfs", "sys", ""),
    ("devtmpfs", "dev", "mode=755"),
    ("tmpfs", "run", "mode=755"),
    (
        "cgroup2",
        "sys/fs/cgroup",
        "nsdelegate,memory_recursiveprot",
    ),
];

/// Moves to a root on tmpfs and mounts what the kernel offers.
///
/// pivot_root(2), which every container needs, refuses to work on the initial
/// rootfs. The program itself keeps running from there: its pages are in use,
/// a copy would cost their size again. Nothing else is in the initramfs.
pub(crate) fn leave_initramfs() -> Result<()> {
    let attached = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let stage = Path::new(STAGE);
    fs::create_dir(stage).doing(|| format!("mkdir {STAGE}"))?;
    attach(
        "tmpfs",
        stage,
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        "mode=755,size=1m",
    )?;
    for directory in ["proc", "sys", "dev", "run"] {
        let path = stage.join(directory);
        fs::create_dir(&path).doing(|| format!("mkdir {}", path.display()))?;
    }
    for (fstype, directory, options) in FILE_SYSTEMS {
        let flags = match fstype {
            "devtmpfs" => MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            _ => attached,
        };
        attach(fstype, &stage.join(directory), flags, options)?;
    }
    // Whoever looks at /proc/1/root finds no way to the program's file.
    fs::remove_file(INIT).doing(|| format!("unlink {INIT}"))?;
    chdir(stage).doing(|| format!("chdir {STAGE}"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .doing(|| "move the new root to /".into())?;
    chroot(".").doing(|| "chroot to the new root".into())?;
    chdir("/").doing(|| "chdir /".into())?;
    // Only /run is written to from now on.
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>)
        .doing(|| "make the root read-only".into())
}

fn attach(fstype: &str, place: &Path, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(fstype), place, Some(fstype), flags, Some(options))
        .doing(|| format!("mount {fstype} at {}", place.display()))
}

/// Directory where the root of a container is attached while it is set up, in
/// the mount namespace of its own.
pub(crate) const CONTAINER_ROOT: &str = "/run/casemate/root";

/// Makes the directories that the agent expects.
pub(crate) fn make_directories() -> Result<()> {
    fs::create_dir_all(CONTAINER_ROOT).doing(|| format!("mkdir {CONTAINER_ROOT}"))
}
