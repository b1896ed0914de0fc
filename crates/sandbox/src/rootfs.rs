//! Root file systems that a client describes as mounts: containerd's
//! snapshotters make the layers and leave the mounting to the runtime.

use std::path::PathBuf;

/// A mount as containerd describes it (`containerd.types.Mount`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootMount {
    /// Type of the file system, or "bind".
    pub fstype: String,
    /// What is mounted.
    pub source: PathBuf,
    /// Where, relative to the root file system; empty for the root itself.
    pub target: PathBuf,
    /// As in fstab(5).
    pub options: Vec<String>,
}
