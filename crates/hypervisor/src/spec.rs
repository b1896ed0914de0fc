//! What a machine is made of when it starts.

use std::{fs::File, os::fd::OwnedFd, path::PathBuf};

use tokio::sync::oneshot;

use crate::{Error, Parameter, Size};

/// A machine to be started.
#[derive(Debug)]
pub struct BootSpec {
    /// Uncompressed x86-64 kernel image with a PVH entry point.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: PathBuf,
    /// Kernel parameters, after those that the back end needs for its machine.
    pub parameters: Vec<Parameter>,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// How many devices can be plugged while the machine runs.
    pub hotplug_slots: u32,
    /// Whether the machine can be saved as a template, or is restored from one.
    /// Its file share and its sockets then share a slot of their own, beside
    /// `hotplug_slots`, and can be taken out ([`crate::DeviceId::FILE_SHARE`],
    /// [`crate::DeviceId::VSOCK`]), both at once; it can grow up to
    /// [`crate::Capabilities::grown`] when it is restored. It takes longer to boot.
    pub template: bool,
    /// How large a machine that is restored becomes, before its guest goes on; it stays
    /// as it was saved without.
    pub grown: Option<Size>,
    /// Where the memory of a machine that is restored is counted, if not where the
    /// caller's is: who fills it waits until the file comes, which is the
    /// `cgroup.procs` of that cgroup, or nothing, when the sender goes.
    pub counted: Option<oneshot::Receiver<File>>,
    /// Files shared with the guest. A machine that is to be saved boots without:
    /// they are plugged into its clones.
    pub file_share: Option<FileShare>,
    /// Sockets between host and guest.
    pub vsock: Option<Vsock>,
    /// Where the guest's console output goes.
    pub console: ConsoleLog,
    /// Network namespace to live in; without one, a new and empty one.
    pub netns: Option<OwnedFd>,
    /// Whom the program runs as.
    pub identity: Identity,
}

impl BootSpec {
    /// Whether a machine can boot so.
    pub(crate) fn check_boot(&self) -> Result<(), Error> {
        let refused = [
            (
                self.template && self.file_share.is_some(),
                "a machine that is to be saved boots without shared files",
            ),
            (self.grown.is_some(), "a machine that boots does not grow"),
            (
                self.counted.is_some(),
                "the memory of a machine that boots is its own",
            ),
        ];
        match refused.into_iter().find(|(is, _)| *is) {
            Some((_, problem)) => Err(Error::Device { problem }),
            None => Ok(()),
        }
    }
}

/// A virtio-fs device whose back end is another process.
#[derive(Debug)]
pub struct FileShare {
    /// What the guest mounts it by.
    pub tag: String,
    /// Stream socket connected to the vhost-user-fs back end, which must already
    /// be serving it.
    pub socket: OwnedFd,
}

/// A virtio-vsock device whose back end is another process.
#[derive(Debug)]
pub struct Vsock {
    /// Stream socket connected to the vhost-user-vsock back end, which must
    /// already be serving it. The back end tells the guest its CID.
    pub socket: OwnedFd,
}

/// The end of the guest's console output, in a file.
#[derive(Debug, Clone)]
pub struct ConsoleLog {
    /// The file, made anew.
    pub path: PathBuf,
    /// Most bytes the file may hold; the newest are kept.
    pub limit_bytes: u64,
}

/// An unprivileged user of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}
