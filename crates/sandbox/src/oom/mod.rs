//! Telling a client that its container ran out of memory.
//!
//! Clients watch the container's cgroup on the host, and a guest that runs out
//! of memory does not disturb that one. So it is told here, once for each
//! container, before the process ends whose end clients wait for:
//!
//! * conmon (Podman, CRI-O) leaves an empty file `oom` in the bundle; it is left
//!   in its stead.
//! * Everybody else (Docker and containerd with their runc shim) waits for the
//!   kernel's own notice, which nobody can send but the kernel: it is made to,
//!   by [`kernel`].

mod kernel;

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::cgroup::Cgroup;

/// Names the client (libpod and CRI-O set it on every container).
const MANAGER: &str = "io.container.manager";

/// What conmon calls it.
const FILE: &str = "oom";

/// Whom to tell, and how.
#[derive(Debug)]
pub(crate) struct Notice {
    way: Way,
    told: Cell<bool>,
}

#[derive(Debug, PartialEq)]
enum Way {
    File(PathBuf),
    Kernel(PathBuf),
    Nobody,
}

impl Notice {
    /// For the client of a container, which its annotations name.
    pub(crate) fn new(
        bundle: &Path,
        annotations: &BTreeMap<String, String>,
        cgroup: Option<&str>,
    ) -> Self {
        let manager = annotations.get(MANAGER).map(String::as_str);
        let way = match (manager, cgroup) {
            (Some("libpod" | "cri-o"), _) => Way::File(bundle.join(FILE)),
            (_, Some(path)) => Way::Kernel(path.into()),
            (_, None) => Way::Nobody,
        };
        Self {
            way,
            told: Cell::new(false),
        }
    }

    /// Tells it, if that was not done yet.
    ///
    /// # Errors
    /// One line: what could not be done.
    pub(crate) async fn tell(&self) -> io::Result<()> {
        if self.told.replace(true) {
            return Ok(());
        }
        match &self.way {
            Way::File(path) => File::create(path).map(drop),
            Way::Kernel(path) => {
                let group = Cgroup::locate(path).map_err(io::Error::other)?;
                let Some(directory) = group.memory() else {
                    return Ok(());
                };
                kernel::provoke(directory).await
            }
            Way::Nobody => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_is_told_in_the_way_that_it_listens() {
        let way = |manager: &str, cgroup| {
            let annotations = BTreeMap::from([(MANAGER.to_owned(), manager.to_owned())]);
            Notice::new(Path::new("/bundle"), &annotations, cgroup).way
        };
        for conmon in ["libpod", "cri-o"] {
            assert_eq!(way(conmon, Some("/a")), Way::File("/bundle/oom".into()));
        }
        assert_eq!(way("other", Some("/a")), Way::Kernel("/a".into()));
        assert_eq!(way("other", None), Way::Nobody);
    }
}
