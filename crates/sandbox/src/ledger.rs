//! The ledger: every resource a sandbox takes on the host, with its undo.
//!
//! A line is written *before* its resource is taken, so whatever kills the
//! monitor, the list of what may exist is complete. Roll-back of a failed
//! start, the regular end, `delete --force` and the clean-up after a crash all
//! run the same [`Ledger::undo`]: processes first, then the rest backwards, each
//! step harmless when the resource is gone already.
//!
//! A process is the exception: its id is known only once it runs. It is born
//! with a parent-death signal, which covers the moment until its line exists.
//!
//! Mounts have no lines: they live in the monitor's own mount namespace, which
//! ends with the last process in it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::{cgroup, network};

/// Name of the ledger in the sandbox's directory.
const FILE: &str = "ledger";

/// How long a killed process may take to disappear before the undo goes on.
const DEATH_DEADLINE: Duration = Duration::from_secs(5);

/// A resource on the host, described so that another process can undo it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Resource {
    /// The sandbox's directory with all its files and sockets. Always first,
    /// so that it is removed last.
    Directory {
        /// Absolute path.
        path: PathBuf,
    },
    /// A cgroup directory that did not exist before.
    Cgroup {
        /// Absolute path.
        path: PathBuf,
    },
    /// A scope of systemd.
    Scope {
        /// Name of the unit.
        unit: String,
    },
    /// The redirect on a network interface of somebody else. (The tap that it
    /// leads to goes with its last descriptor.)
    Redirect {
        /// Path of the network namespace.
        namespace: PathBuf,
        /// Which namespace that was: a path may come to mean another one.
        device: u64,
        /// The other half of that.
        inode: u64,
        /// Number of the interface.
        interface: u32,
    },
    /// The range of local ports of a network namespace of somebody else.
    LocalPorts {
        /// Path of the network namespace.
        namespace: PathBuf,
        /// As in a redirect.
        device: u64,
        /// The other half of that.
        inode: u64,
        /// The range that it had: two numbers.
        before: String,
    },
    /// A process: killed when it still is the one that was meant.
    Process {
        /// What it is to the sandbox ("vmm", "devices", "stand-in").
        role: String,
        /// Process id on the host.
        pid: u32,
        /// Start time as /proc/<pid>/stat has it: an id may be used again.
        start_time: u64,
    },
}

/// Why an entry could not be written, or an undo step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger cannot be written or read.
    #[error("ledger {path}: {source}", path = path.display())]
    File {
        /// The ledger.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A resource is still there.
    #[error("cannot undo {resource:?}: {source}")]
    Undo {
        /// What is left.
        resource: Box<Resource>,
        /// What the system said.
        source: io::Error,
    },
}

/// The open ledger of one sandbox.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
}

impl Ledger {
    /// Starts the ledger of a sandbox in its fresh directory.
    ///
    /// # Errors
    /// When it exists already or cannot be written.
    pub fn create(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| Error::File {
                path: path.clone(),
                source,
            })?;
        let mut ledger = Self { path, file };
        ledger.record(&Resource::Directory {
            path: directory.to_owned(),
        })?;
        Ok(ledger)
    }

    /// Opens the ledger that another process has started.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|source| Error::File {
                path: path.clone(),
                source,
            })?;
        Ok(Self { path, file })
    }

    /// Writes down a resource that is about to be taken.
    ///
    /// # Errors
    /// When the line did not reach the file; then do not take the resource.
    pub fn record(&mut self, resource: &Resource) -> Result<(), Error> {
        let mut line = serde_json::to_vec(resource).expect("a resource is plain data");
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| Error::File {
                path: self.path.clone(),
                source,
            })
    }

    /// Writes down a process that has just been made.
    ///
    /// # Errors
    /// As [`record`](Self::record); a process that has ended already has no
    /// line and needs none.
    pub fn record_process(&mut self, role: &str, pid: u32) -> Result<(), Error> {
        match start_time(pid) {
            Some(start_time) => self.record(&Resource::Process {
                role: role.to_owned(),
                pid,
                start_time,
            }),
            None => Ok(()),
        }
    }

    /// The processes in the ledger of `directory` that live, by what they are to
    /// the sandbox and their ids.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn processes(directory: &Path) -> Result<Vec<(String, u32)>, Error> {
        let living = |resource| match resource {
            Resource::Process {
                role,
                pid,
                start_time: recorded,
            } => (start_time(pid) == Some(recorded)).then_some((role, pid)),
            _ => None,
        };
        Ok(Self::read(directory)?
            .into_iter()
            .filter_map(living)
            .collect())
    }

    /// Undoes everything in the ledger of `directory`, last first, and goes on
    /// after failures. A directory without a ledger is simply removed.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub fn undo(directory: &Path) -> Result<(), Error> {
        let mut resources = Self::read(directory)?;
        if resources.is_empty() {
            resources.push(Resource::Directory {
                path: directory.to_owned(),
            });
        }
        // Processes first, whenever they came: they hold on to the rest. The end of
        // one takes as long as the memory that it gives back is large, so none
        // begins to die only when another one has.
        resources.sort_by_key(|resource| matches!(resource, Resource::Process { .. }));
        resources.iter().for_each(Resource::doom);
        let mut first_failure = Ok(());
        for resource in resources.into_iter().rev() {
            if let Err(source) = resource.undo() {
                first_failure = first_failure.and(Err(Error::Undo {
                    resource: Box::new(resource),
                    source,
                }));
            }
        }
        first_failure
    }

    /// The lines of a ledger. A last line cut short by a full disk or a crash
    /// stands for a resource that was never taken.
    fn read(directory: &Path) -> Result<Vec<Resource>, Error> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(|source| Error::File { path, source })?,
        };
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }
}

impl Resource {
    /// Has a process begin to die; [`undo`](Self::undo) waits for its end, and
    /// tells what goes wrong.
    fn doom(&self) {
        if let Self::Process {
            pid, start_time, ..
        } = self
        {
            let _ = signal(*pid, *start_time);
        }
    }

    fn undo(&self) -> io::Result<()> {
        let result = match self {
            Self::Directory { path } => remove_directory(path),
            Self::Cgroup { path } => cgroup::remove(path),
            Self::Scope { unit } => cgroup::scope::stop(unit),
            Self::Redirect {
                namespace,
                device,
                inode,
                interface,
            } => network::undo(namespace, (*device, *inode), *interface),
            Self::LocalPorts {
                namespace,
                device,
                inode,
                before,
            } => network::undo_ports(namespace, (*device, *inode), before),
            Self::Process {
                pid, start_time, ..
            } => kill(*pid, *start_time),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// Removes a sandbox's directory: files, and directories that hold only files.
///
/// Deliberately not recursive: the share below it may have the user's files
/// mounted in it, and a removal that descended there would delete them.
fn remove_directory(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
            continue;
        }
        for inner in fs::read_dir(entry.path())? {
            let inner = inner?;
            if !inner.file_type()?.is_dir() {
                fs::remove_file(inner.path())?;
            }
        }
        fs::remove_dir(entry.path())?;
    }
    fs::remove_dir(directory)
}

/// Kills a process and waits until it is gone.
fn kill(pid: u32, expected: u64) -> io::Result<()> {
    let Some(pidfd) = signal(pid, expected)? else {
        return Ok(());
    };
    let timeout = PollTimeout::try_from(DEATH_DEADLINE).expect("seconds fit");
    match poll(
        &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
        timeout,
    )? {
        0 => Err(io::Error::from(io::ErrorKind::TimedOut)),
        _ => Ok(()),
    }
}

/// Sends a process SIGKILL. None when it is gone, or this one.
fn signal(pid: u32, expected: u64) -> io::Result<Option<OwnedFd>> {
    if pid == std::process::id() {
        return Ok(None);
    }
    let pidfd = match casemate_linux::process::pidfd_open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        other => other?,
    };
    // Looked at after the pidfd pinned the process. A zombie counts: threads of
    // it may live on and hold what the process held.
    if identity(pid).is_none_or(|(_, start_time)| start_time != expected) {
        return Ok(None);
    }
    match casemate_linux::process::signal_pidfd(pidfd.as_fd(), libc::SIGKILL) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        other => other.map(|()| Some(pidfd)),
    }
}

/// Field 22 of /proc/<pid>/stat, in clock ticks since boot. None when there is
/// no such process, or only its zombie.
pub fn start_time(pid: u32) -> Option<u64> {
    let (zombie, start_time) = identity(pid)?;
    (!zombie).then_some(start_time)
}

/// Whether the process is a zombie, and its start time.
fn identity(pid: u32) -> Option<(bool, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may hold anything but ends with the last ')'.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let zombie = fields.next()? == "Z";
    Some((zombie, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_is_recorded_is_undone_backwards() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("box");
        fs::create_dir(&directory).unwrap();
        let mut ledger = Ledger::create(&directory).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        ledger.record_process("vmm", child.id()).unwrap();
        fs::write(directory.join("console.log"), "text").unwrap();

        Ledger::undo(&directory).unwrap();
        assert!(!directory.exists());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn an_id_that_was_used_again_is_spared() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("box");
        fs::create_dir(&directory).unwrap();
        let mut ledger = Ledger::create(&directory).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        ledger
            .record(&Resource::Process {
                role: "vmm".into(),
                pid: child.id(),
                start_time: start_time(child.id()).unwrap() - 1,
            })
            .unwrap();
        Ledger::undo(&directory).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_line_cut_short_does_not_hide_the_others() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("box");
        fs::create_dir(&directory).unwrap();
        let mut ledger = Ledger::create(&directory).unwrap();
        ledger.file.write_all(b"{\"kind\":\"cgr").unwrap();
        Ledger::undo(&directory).unwrap();
        assert!(!directory.exists());
        Ledger::undo(&directory).unwrap();
    }
}
