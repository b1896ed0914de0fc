//! Paths of the host and of the guest, as types that cannot be mixed.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// An absolute path on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct HostPath(PathBuf);

impl HostPath {
    /// `path`, if it is absolute.
    pub fn new(path: impl Into<PathBuf>) -> Option<Self> {
        let path = path.into();
        path.is_absolute().then_some(Self(path))
    }

    /// `path` as seen from this folder; an absolute one stays as it is.
    #[must_use]
    pub fn join(&self, path: impl AsRef<Path>) -> Self {
        Self(self.0.join(path))
    }

    /// For calls on the host.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for HostPath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        let message = format!("{}: not an absolute path", path.display());
        Self::new(path).ok_or(message)
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(formatter)
    }
}

/// An absolute path in the guest, outside every container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPath(String);

impl GuestPath {
    /// The root file system of a container.
    pub fn rootfs(container_id: &str) -> Self {
        Self(casemate_protocol::paths::rootfs(container_id))
    }

    /// The n-th volume of a container.
    pub fn volume(container_id: &str, n: usize) -> Self {
        Self(casemate_protocol::paths::volume(container_id, n))
    }

    /// A device node that the guest kernel makes.
    pub(crate) fn device(path: &'static str) -> Self {
        Self(path.to_owned())
    }

    /// For a message to the agent.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
