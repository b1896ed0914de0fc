//! The state file of a container: what other processes may know of it, and all
//! that is left of it when its monitor has been killed.
//!
//! Replaced as a whole (temporary file, fsync, rename) and versioned. Whether
//! the monitor still lives is not written anywhere: it holds a lock on
//! [`LOCK_FILE`] in the sandbox's directory as long as it does, which no kill
//! can leave behind.

use std::{
    collections::BTreeMap,
    fmt, fs,
    fs::{File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::layout;

/// Version of the format; a file of another version is not read.
pub const VERSION: u32 = 2;

/// Name of the state file in the container's directory.
const FILE: &str = "state.json";

/// Name of the file that the sandbox's monitor keeps locked while it lives.
const LOCK_FILE: &str = "lock";

/// OCI runtime spec, "State": status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// The init process waits before exec.
    Created,
    /// The user's program has been let go.
    Running,
    /// All its processes are frozen.
    Paused,
    /// It has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What the state file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Id of the container.
    pub id: String,
    /// `ociVersion` of the bundle's config.json.
    pub oci_version: String,
    /// Status when the file was written; see [`State::load`] for the truth.
    pub status: Status,
    /// Process id of the stand-in on the host, 0 when there is none any more.
    pub pid: u32,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system on the host; empty for a pod's
    /// sandbox container, which has none.
    pub rootfs: PathBuf,
    /// Time of creation, RFC 3339 with nanoseconds, UTC.
    pub created: String,
    /// User who created it.
    pub owner: String,
    /// Annotations of the bundle's config.json.
    pub annotations: BTreeMap<String, String>,
    /// What the VM is isolated by: "kvm", "nested" or "emulated".
    pub tier: Option<String>,
    /// Hooks to be run when the container is deleted, if the monitor cannot.
    pub poststop_hooks: Vec<oci_spec::runtime::Hook>,
    /// Exit status, once stopped.
    pub exit_status: Option<u32>,
}

/// Why a state file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no such container.
    #[error("container does not exist")]
    Missing,
    /// It is not a state file of ours.
    #[error("{path}: not a state file: {source}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where it went wrong.
        source: serde_json::Error,
    },
    /// Another version of Casemate has made the container.
    #[error(
        "{path}: state version {found}, this build reads {VERSION}; \
         use the casemate that created the container",
        path = path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

impl State {
    /// Replaces the state file in `directory`.
    ///
    /// # Errors
    /// When the disk is full or the directory is gone; the old file stays.
    pub fn store(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(FILE);
        let temporary = directory.join(".state.json.new");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })
    }

    /// The same at another moment of its life.
    pub fn with_status(self, status: Status) -> Self {
        Self { status, ..self }
    }

    /// As clients and hooks get it (OCI runtime spec, "State").
    pub fn to_oci_json(&self) -> Vec<u8> {
        let state = serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": self.status,
            "pid": self.pid,
            "bundle": self.bundle,
            "annotations": self.annotations,
        });
        serde_json::to_vec(&state).expect("plain data")
    }

    /// Reads the state of the container in `directory`. When its monitor is
    /// gone the container is stopped, whatever the file says.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is no container.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Missing),
            other => other.map_err(|source| Error::Io {
                path: path.clone(),
                source,
            })?,
        };
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let malformed = |source| Error::Malformed {
            path: path.clone(),
            source,
        };
        let Versioned { version: found } = serde_json::from_slice(&text).map_err(malformed)?;
        if found != u64::from(VERSION) {
            return Err(Error::Version { path, found });
        }
        let mut state: Self = serde_json::from_slice(&text).map_err(malformed)?;
        let lives = || layout::sandbox_of(directory).is_some_and(|sandbox| monitor_lives(&sandbox));
        if state.status != Status::Stopped && !lives() {
            state.status = Status::Stopped;
        }
        if state.status == Status::Stopped {
            state.pid = 0;
        }
        Ok(state)
    }
}

/// The lock that says "this sandbox's monitor lives".
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] File);

impl Lock {
    /// Takes the lock of a sandbox's directory.
    ///
    /// # Errors
    /// When another monitor has it, or the disk is full.
    pub fn acquire(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(LOCK_FILE);
        let take = || {
            let file = File::create(&path)?;
            file.try_lock()?;
            Ok(file)
        };
        take().map(Self).map_err(|source: io::Error| Error::Io {
            path: path.clone(),
            source,
        })
    }
}

/// Whether a monitor holds the lock of a sandbox's directory.
pub fn monitor_lives(directory: &Path) -> bool {
    match File::open(directory.join(LOCK_FILE)) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    }
}

#[cfg(test)]
impl State {
    /// That of a running container.
    pub(crate) fn fake() -> Self {
        Self {
            version: VERSION,
            id: "web".into(),
            oci_version: "1.0.2".into(),
            status: Status::Running,
            pid: 42,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-01-01T00:00:00Z".into(),
            owner: "root".into(),
            annotations: BTreeMap::new(),
            tier: None,
            poststop_hooks: Vec::new(),
            exit_status: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_its_monitor_a_container_is_stopped() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("web");
        fs::create_dir(&directory).unwrap();
        let sandbox = layout::make_sandbox(&directory).unwrap();
        State::fake().store(&directory).unwrap();
        let lock = Lock::acquire(&sandbox).unwrap();
        assert!(Lock::acquire(&sandbox).is_err());
        assert_eq!(State::load(&directory).unwrap(), State::fake());
        drop(lock);
        let dead = State::load(&directory).unwrap();
        assert_eq!((dead.status, dead.pid), (Status::Stopped, 0));
    }

    #[test]
    fn other_versions_and_garbage_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let load = || State::load(directory.path());
        assert!(matches!(load(), Err(Error::Missing)));
        fs::write(directory.path().join(FILE), "{\"version\":1}").unwrap();
        assert!(matches!(load(), Err(Error::Version { found: 1, .. })));
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(matches!(load(), Err(Error::Malformed { .. })));
    }
}
