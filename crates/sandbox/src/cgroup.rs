//! The sandbox's cgroup on the host, v1 and v2.
//!
//! `linux.cgroupsPath` of the OCI runtime spec names one directory, relative to
//! the mount point of every hierarchy, or a [`scope`] of systemd, which has one.
//! Clients read the container's figures and OOM notices from there, so the VM's
//! processes and the stand-in live in it.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    thread,
    time::Duration,
};

use nix::libc;

use crate::ledger::{self, Ledger, Resource};

mod bus;
pub(crate) mod limits;
pub mod scope;

use scope::Scope;

/// Pauses before a busy cgroup is tried again, in milliseconds; 2 s in all.
const PAUSES: [u64; 9] = [1, 5, 10, 20, 50, 100, 300, 500, 1000];

/// The directories of one cgroup: one on v2, one for each hierarchy on v1.
#[derive(Debug, Clone, Default)]
pub struct Cgroup {
    directories: Vec<PathBuf>,
    /// systemd's name for it, if it is to make it.
    scope: Option<Scope>,
}

/// Why a cgroup path is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has colons and is not what the systemd driver means by them.
    #[error(
        "cgroup path {0:?}: expected cgroupsPath to be of format \"slice:prefix:name\" for \
         systemd cgroups"
    )]
    NoScope(String),
    /// Nobody makes scopes here.
    #[error(
        "cgroup path {0:?}: systemd does not run here; use the client's cgroupfs driver \
         (podman: --cgroup-manager=cgroupfs, docker: native.cgroupdriver=cgroupfs, containerd: \
         SystemdCgroup = false)"
    )]
    NoSystemd(String),
    /// systemd refuses.
    #[error("systemd: {unit}: {source}")]
    Systemd {
        /// The scope.
        unit: String,
        /// Why.
        source: bus::Error,
    },
    /// It would lead out of the hierarchy.
    #[error("cgroup path {0:?} must not contain \"..\"")]
    ParentComponent(String),
    /// The list of mounts cannot be read.
    #[error("/proc/self/mountinfo: {0}")]
    Mounts(io::Error),
    /// The kernel refuses.
    #[error("cgroup {path}: {source}", path = path.display())]
    Refused {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be made undoable.
    #[error(transparent)]
    Ledger(Box<ledger::Error>),
}

impl From<ledger::Error> for Error {
    fn from(error: ledger::Error) -> Self {
        Self::Ledger(Box::new(error))
    }
}

impl Cgroup {
    /// Whether the cgroup of `path` can be made here, as far as that can be known
    /// without trying.
    ///
    /// # Errors
    /// As [`Cgroup::locate`]; [`Error::NoSystemd`].
    pub fn check(path: &str) -> Result<(), Error> {
        match Self::locate(path.as_ref())?.scope {
            Some(_) if !scope::is_available() => Err(Error::NoSystemd(path.to_owned())),
            _ => Ok(()),
        }
    }

    /// Finds where the cgroup of `path` would be; creates nothing.
    ///
    /// # Errors
    /// For names of scopes that are none, and paths with "..".
    pub fn locate(path: &Path) -> Result<Self, Error> {
        let text = path.to_string_lossy();
        let scope = match text.contains(':') {
            true => Some(Scope::parse(&text).ok_or_else(|| Error::NoScope(text.to_string()))?),
            false => None,
        };
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(Error::ParentComponent(text.into_owned()));
        }
        let path = scope.as_ref().map_or_else(|| path.to_owned(), Scope::path);
        let relative = path.strip_prefix("/").unwrap_or(&path);
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(Error::Mounts)?;
        Ok(Self {
            directories: hierarchies(&mounts)
                .into_iter()
                .map(|root| root.join(relative))
                .collect(),
            scope,
        })
    }

    /// Makes the cgroup of `path` as far as it is not there yet, and puts a first
    /// process into it; each directory is in the ledger before. The cgroup itself is ours whoever has made it,
    /// as with runc: an earlier user may have left it to us.
    ///
    /// # Errors
    /// As [`Cgroup::locate`], and what the kernel or systemd refuses.
    pub fn make(path: &str, first: u32, ledger: &mut Ledger) -> Result<Self, Error> {
        let group = Self::locate(path.as_ref())?;
        if let Some(scope) = &group.scope {
            ledger.record(&Resource::Scope {
                unit: scope.unit.clone(),
            })?;
            scope.start(first).map_err(|source| Error::Systemd {
                unit: scope.unit.clone(),
                source,
            })?;
        }
        // With systemd those of cgroup v1 that it leaves to us.
        for directory in group.directories.iter().flat_map(|leaf| taken(leaf)) {
            ledger.record(&Resource::Cgroup {
                path: directory.clone(),
            })?;
            make(&directory).map_err(|source| Error::Refused {
                path: directory,
                source,
            })?;
        }
        group.add(first)?;
        Ok(group)
    }

    /// Sets limits on it.
    ///
    /// # Errors
    /// What the kernel refuses, with the file's name.
    pub(crate) fn limit(&self, settings: &[(&'static str, String)]) -> Result<(), Error> {
        for directory in &self.directories {
            limits::apply(directory, settings).map_err(|source| Error::Refused {
                path: directory.clone(),
                source,
            })?;
        }
        let Some(scope) = &self.scope else {
            return Ok(());
        };
        scope.limit(settings).map_err(|source| Error::Systemd {
            unit: scope.unit.clone(),
            source,
        })
    }

    /// The directory where memory is counted, if it is anywhere.
    pub(crate) fn memory(&self) -> Option<&Path> {
        let controls = |directory: &&PathBuf| {
            // A cgroup that is yet to be made is like the one above it.
            let near = directory.ancestors().find(|path| path.exists());
            let hierarchy = near.unwrap_or(directory);
            let listed = fs::read_to_string(hierarchy.join("cgroup.controllers"));
            let on_v2 = listed.is_ok_and(|list| list.split_whitespace().any(|one| one == "memory"));
            on_v2 || hierarchy.join("memory.usage_in_bytes").exists()
        };
        self.directories.iter().find(controls).map(PathBuf::as_path)
    }

    /// Moves a process, with all its threads, into the cgroup.
    ///
    /// # Errors
    /// ENOENT when the cgroup was not made, ESRCH when the process has ended.
    pub fn add(&self, pid: u32) -> Result<(), Error> {
        for directory in &self.directories {
            let path = directory.join("cgroup.procs");
            fs::write(&path, pid.to_string()).map_err(|source| Error::Refused { path, source })?;
        }
        Ok(())
    }
}

/// `directory` and those of its ancestors that do not exist yet, outermost
/// first: what has to be there, and to be undone.
fn taken(directory: &Path) -> Vec<PathBuf> {
    let ancestors = directory.ancestors().skip(1);
    let mut taken: Vec<_> = ancestors
        .take_while(|path| !path.exists())
        .map(Path::to_owned)
        .collect();
    taken.reverse();
    taken.push(directory.to_owned());
    taken
}

/// Makes one cgroup directory and gives it the settings without which no
/// process can enter (v1 cpuset).
///
/// # Errors
/// Those of mkdir(2).
fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = directory.join(file);
        let Some(inherited) = directory.parent().map(|parent| parent.join(file)) else {
            continue;
        };
        // v2 inherits by itself; there the file is empty and stays so.
        if is_v1(directory) && own.exists() && fs::read_to_string(&own)?.trim().is_empty() {
            fs::write(own, fs::read_to_string(inherited)?.trim())?;
        }
    }
    Ok(())
}

/// Removes an empty cgroup directory. A process that is ending still counts for
/// a moment after it can no longer be seen or waited for, so a busy cgroup is
/// tried again for a bounded time; one that somebody else uses stays: it is
/// theirs now. One that has others below it is that without a doubt.
///
/// # Errors
/// Those of rmdir(2), except EBUSY.
pub fn remove(directory: &Path) -> io::Result<()> {
    for pause in PAUSES {
        match fs::remove_dir(directory) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            other => return other,
        }
        if has_groups(directory) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(pause));
    }
    tracing::warn!(cgroup = %directory.display(), "still in use, left alone");
    Ok(())
}

/// Whether there are cgroups below it.
fn has_groups(directory: &Path) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut kinds = entries.flat_map(|entry| entry.file_type());
    kinds.any(|kind| kind.is_dir())
}

fn is_v1(directory: &Path) -> bool {
    !directory.join("cgroup.controllers").exists()
}

/// Mount points of the cgroup hierarchies in a /proc/self/mountinfo. On a pure
/// v2 host that is one. On a v1 or hybrid host every v1 hierarchy; the v2 one
/// carries no resource there, but systemd's and our own name tracking.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else {
            continue;
        };
        let kind = file_system.split(' ').next().unwrap_or_default();
        let mut fields = mount.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
            continue;
        };
        if root == "/" && matches!(kind, "cgroup" | "cgroup2") {
            let point = PathBuf::from(point);
            if !found.contains(&point) {
                found.push(point);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_of_hierarchies_are_found() {
        let hybrid = "\
30 20 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 30 0:27 /sub /elsewhere rw - cgroup cgroup rw,memory
";
        assert_eq!(
            hierarchies(hybrid),
            ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"].map(PathBuf::from)
        );
        let unified = "30 20 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(hierarchies(unified), [PathBuf::from("/sys/fs/cgroup")]);
    }

    #[test]
    fn paths_that_cannot_be_honoured_are_refused() {
        assert!(matches!(
            Cgroup::locate(Path::new("system.slice:crio")),
            Err(Error::NoScope(_))
        ));
        assert!(matches!(
            Cgroup::locate(Path::new("/a/../../b")),
            Err(Error::ParentComponent(_))
        ));
    }

    #[test]
    fn what_is_missing_and_the_group_itself_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("a/b");
        assert_eq!(taken(&leaf), [root.path().join("a"), leaf.clone()]);
        make(&root.path().join("a")).unwrap();
        for _ in 0..2 {
            assert_eq!(taken(&leaf), std::slice::from_ref(&leaf));
            make(&leaf).unwrap();
        }
    }
}
