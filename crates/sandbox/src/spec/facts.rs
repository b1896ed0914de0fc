//! What the split needs to know of the host.

use std::io;

use super::HostPath;

/// Answers questions about the host.
pub trait HostFacts {
    /// What `path` leads to, symbolic links followed.
    fn resolve(&self, path: &HostPath) -> io::Result<Resolved>;

    /// The container of the same sandbox to which the namespace at `path`
    /// (`/proc/<pid of its stand-in>/ns/…`) belongs.
    fn container_of(&self, path: &HostPath) -> Option<String>;
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The same place without symbolic links.
    pub path: HostPath,
    /// What is there.
    pub source: Source,
}

/// What is found at a path of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder.
    Directory,
    /// The root of a tmpfs.
    Tmpfs {
        /// Its limit in bytes, 0 = none.
        size: u64,
    },
    /// A regular file.
    File,
    /// A character device.
    CharacterDevice {
        /// Its driver.
        major: u32,
        /// Its instance.
        minor: u32,
    },
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
    /// Something of a file system that shows the host's kernel, such as proc.
    Kernel {
        /// Type of the file system.
        fstype: &'static str,
    },
}

/// The host that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct LiveHost;
