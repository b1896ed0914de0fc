//! Namespaces and the mount tree.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use casemate_linux::mount::{attr, clone_tree, set_attributes};
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, pivot_root};

use super::{Error, failed};

/// What the jailed process holds of the outside.
pub struct Jail {
    /// `/proc/self/fd`: the file server reopens its descriptors through it.
    pub proc_self_fd: File,
    /// `/proc/self/mountinfo`: where the file server finds a mount by its id.
    pub mountinfo: File,
    /// Directory of the host's vsock sockets, on a mount of its own, read-only.
    pub vsock_dir: OwnedFd,
}

impl Jail {
    /// Leaves the host's namespaces; the share becomes the root directory.
    ///
    /// The share must be the root, not a directory beside others: most requests
    /// of a guest take a name, and the file server passes names like `..` and
    /// `a/../../b` on to `unlinkat`, `mkdirat`, … as they are. At the root of
    /// the tree the kernel itself stops them.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN; when `share` is not a mount point.
    pub fn enter(share: &Path, vsock_dir: &Path) -> Result<Jail, Error> {
        let proc_self =
            open_directory(Path::new("/proc/self")).map_err(failed("open /proc/self"))?;
        unshare(
            CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWCGROUP,
        )
        .map_err(failed("make namespaces"))?;
        // Slaves and not private: what the monitor mounts under the share has
        // to arrive here, and nothing of here may get out.
        propagation("/".as_ref(), MsFlags::MS_SLAVE | MsFlags::MS_REC)
            .map_err(failed("make all mounts slaves"))?;
        let vsock_dir = wall_off(vsock_dir).map_err(failed("clone the vsock directory"))?;
        become_root(share)?;
        // From here on, so that it tells of the jail's mounts and paths.
        let mountinfo = openat(
            &proc_self,
            "mountinfo",
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed("open mountinfo"))?;
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc_self_fd = openat(&proc_self, "fd", directory, Mode::empty())
            .map_err(failed("open the list of descriptors"))?;
        Ok(Jail {
            proc_self_fd: proc_self_fd.into(),
            mountinfo: mountinfo.into(),
            vsock_dir,
        })
    }
}

fn propagation(target: &Path, flags: MsFlags) -> nix::Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    open(
        path,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// Opens a directory on a mount of its own that is attached nowhere, so there
/// is no way up from it. Connecting to a socket is allowed on a read-only mount.
fn wall_off(directory: &Path) -> io::Result<OwnedFd> {
    let tree = clone_tree(directory, false)?;
    let walls = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
    set_attributes(tree.as_fd(), walls, 0, MsFlags::empty(), false)?;
    Ok(tree)
}

fn become_root(share: &Path) -> Result<(), Error> {
    let root = open_directory(share).map_err(failed("open the share"))?;
    // Mounts that come later bring the attributes the monitor gave them.
    let walls = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    set_attributes(root.as_fd(), walls, 0, MsFlags::empty(), true)
        .map_err(failed("restrict the share (is it a mount point?)"))?;
    nix::unistd::fchdir(&root).map_err(failed("enter the share"))?;
    // Puts the old root onto the new one, from where it is taken off at once.
    pivot_root(".", ".").map_err(failed("make the share the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("leave the old root"))?;
    chdir("/").map_err(failed("enter the new root"))
}
