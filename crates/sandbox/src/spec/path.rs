//! Paths of the host and of the guest, as types that cannot be mixed.

use std::fmt;
use std::path::{Path, PathBuf};

use casemate_protocol::paths;
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
        Self::new(&path).ok_or_else(|| format!("{}: not an absolute path", path.display()))
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A line of an error or log stays one line whatever the path is.
        self.0.to_string_lossy().escape_debug().fmt(formatter)
    }
}

/// An absolute path in the guest, outside every container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPath(String);

impl GuestPath {
    /// The root file system of a container.
    pub fn rootfs(container_id: &str) -> Self {
        Self(paths::rootfs(container_id))
    }

    /// The n-th volume of a container.
    pub fn volume(container_id: &str, n: usize) -> Self {
        Self(paths::volume(container_id, n))
    }

    /// A device node that the guest's kernel makes.
    pub(super) fn device(path: &str) -> Self {
        Self(path.to_owned())
    }

    /// For a message to the agent.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// `path` inside a container: absolute, without `.`, `..` and doubled slashes.
/// A relative one is taken from the container's root, and `..` does not lead
/// above it.
pub(super) fn in_container(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_container_stays_in_it() {
        let cases = [
            ("/a/b", "/a/b"),
            ("a//b/", "/a/b"),
            ("/./a/../b", "/b"),
            ("../../etc", "/etc"),
            ("/", "/"),
            ("", "/"),
        ];
        for (path, expected) in cases {
            assert_eq!(in_container(path), expected, "{path}");
        }
    }

    #[test]
    fn a_host_path_is_absolute_even_from_json() {
        assert!(HostPath::new("etc").is_none());
        assert!(serde_json::from_str::<HostPath>("\"etc\"").is_err());
        let path: HostPath = serde_json::from_str("\"/etc\"").unwrap();
        assert_eq!(path.join("hosts").as_path(), Path::new("/etc/hosts"));
    }
}
