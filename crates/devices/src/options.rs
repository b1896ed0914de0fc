//! What the monitor tells the device process.

use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use casemate_config::CachePolicy;

use crate::vsock::limits::Limits;

/// How the file server remembers the files the guest knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inodes {
    /// By an open descriptor each: a guest can know at most as many files as
    /// the limit on open files allows.
    Descriptors,
    /// By file handles where the file system has them: no such limit, but it
    /// takes CAP_DAC_READ_SEARCH, with which a subverted device process could
    /// open any file of the same file system.
    Handles,
}

/// What happens on a system call outside the allow-list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyscallPolicy {
    /// The process is killed.
    Enforce,
    /// The kernel logs it and lets it pass: only to find out what is missing.
    Log,
}

/// What rarely needs another value than the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How the file server remembers files.
    pub inodes: Inodes,
    /// What happens on a forbidden system call.
    pub syscalls: SyscallPolicy,
    /// Bounds on vsock connections.
    pub vsock: Limits,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            inodes: Inodes::Descriptors,
            syscalls: SyscallPolicy::Enforce,
            vsock: Limits::default(),
        }
    }
}

/// What the device process is told. Descriptors are numbers on the command line
/// and owned in [`run`](crate::run).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options<Fd = OwnedFd> {
    /// Directory to share: a mount point of the monitor's mount namespace.
    /// Mounts that appear under it later appear in the guest as well.
    pub share: PathBuf,
    /// Where `vm.vsock_<port>` of the host are found.
    pub vsock_dir: PathBuf,
    /// Listening socket for the VMM's vhost-user-fs device.
    pub fs_listener: Fd,
    /// Listening socket for the VMM's vhost-user-vsock device.
    pub vsock_listener: Fd,
    /// Listening hybrid socket, for clients that `CONNECT <port>`.
    pub hybrid_listener: Fd,
    /// Gets one byte once the jail is closed and everything is served.
    pub ready: Option<Fd>,
    /// The guest's context id.
    pub guest_cid: u64,
    /// How long the guest may trust what it has cached of the share.
    pub cache: CachePolicy,
    /// The rest.
    pub settings: Settings,
}

/// The options as the monitor writes them.
pub type CommandLine = Options<RawFd>;
