//! What was found out about this host, remembered until it starts anew: to find
//! it out takes longer than a start should, and every sandbox needs it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use casemate_linux::tsc;
use serde::{Deserialize, Serialize};

use crate::{
    processor::{self, Processor},
    qemu::Version,
    tier::{self, Assessment, KVM_DEVICE},
};

/// Where the facts are kept unless a test says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/run/casemate/host.json";

/// An honest file is far smaller.
const MAX_SIZE: u64 = 64 * 1024;

/// The facts, and where they are kept.
pub(crate) struct Facts {
    path: PathBuf,
    known: Known,
    changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    host: Host,
    assessment: Option<Assessment>,
    counter: Option<Counter>,
    programs: BTreeMap<PathBuf, Program>,
}

/// What all facts depend on. A module loaded later makes `/dev/kvm` anew, and a
/// host that is itself a virtual machine may wake up on another processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Host {
    boot_id: String,
    processor: String,
    kvm: Option<(u64, u32, u32)>,
}

/// The time stamp counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Counter {
    Stable { khz: u64 },
    Unstable,
}

/// A program, known by its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Program {
    file: Identity,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed_s: i64,
    changed_ns: i64,
}

impl From<&Metadata> for Identity {
    fn from(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            changed_s: file.ctime(),
            changed_ns: file.ctime_nsec(),
        }
    }
}

impl Facts {
    /// What is known about this host as it is now.
    ///
    /// # Errors
    /// When the host cannot be told from others: no `/proc`.
    pub(crate) fn recall(path: &Path) -> io::Result<Self> {
        let host = Host::now()?;
        let known = match load(path) {
            Ok(known) if known.host == host => known,
            other => {
                tracing::debug!(path = %path.display(), stale = other.is_ok(), "host facts are found out anew");
                Known {
                    host,
                    assessment: None,
                    counter: None,
                    programs: BTreeMap::new(),
                }
            }
        };
        Ok(Self {
            path: path.to_owned(),
            known,
            changed: false,
        })
    }

    /// How strong a wall the host can build.
    ///
    /// # Errors
    /// Those of [`tier::assess`].
    pub(crate) fn assessment(&mut self) -> io::Result<Assessment> {
        if let Some(known) = &self.known.assessment {
            return Ok(known.clone());
        }
        let assessment = tier::assess()?;
        self.changed = true;
        Ok(self.known.assessment.insert(assessment).clone())
    }

    /// Rate of the time stamp counter in kHz, if it can be relied on. A host too
    /// busy to measure it is asked again next time.
    pub(crate) fn counter_khz(&mut self) -> Option<u64> {
        let counter = match self.known.counter {
            Some(known) => known,
            None if processor::counter_is_stable() => match tsc::rate_khz(tsc::WINDOW) {
                Ok(khz) => Counter::Stable { khz },
                Err(error) => {
                    tracing::warn!(%error, "the guest has to find out the counter's rate");
                    return None;
                }
            },
            None => Counter::Unstable,
        };
        self.changed |= self.known.counter.replace(counter).is_none();
        match counter {
            Counter::Stable { khz } => Some(khz),
            Counter::Unstable => None,
        }
    }

    /// The version of a program, which `ask` finds out.
    ///
    /// # Errors
    /// When there is no such file, and those of `ask`.
    pub(crate) fn version(
        &mut self,
        program: &Path,
        ask: impl FnOnce() -> io::Result<Version>,
    ) -> io::Result<Version> {
        let file = Identity::from(&fs::metadata(program)?);
        if let Some(known) = self.known.programs.get(program)
            && known.file == file
        {
            return Ok(known.version);
        }
        let version = ask()?;
        let known = Program { file, version };
        self.known.programs.insert(program.to_owned(), known);
        self.changed = true;
        Ok(version)
    }

    /// Keeps what was learned. That it cannot be kept only costs time later.
    pub(crate) fn keep(&self) {
        if !self.changed {
            return;
        }
        if let Err(error) = store(&self.path, &self.known) {
            tracing::warn!(path = %self.path.display(), %error, "host facts not kept");
        }
    }
}

/// What the host's kernel is called from its start on.
pub(crate) fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

/// What tells a file from another one, and from itself after a change.
pub(crate) fn identity(path: &Path) -> io::Result<String> {
    let Identity {
        device,
        inode,
        size,
        changed_s,
        changed_ns,
    } = Identity::from(&fs::metadata(path)?);
    Ok(format!("{device} {inode} {size} {changed_s}.{changed_ns}"))
}

impl Host {
    fn now() -> io::Result<Self> {
        let kvm = fs::metadata(KVM_DEVICE).ok();
        Ok(Self {
            boot_id: boot_id()?,
            processor: Processor::read()?.model,
            kvm: kvm.map(|device| (device.ino(), device.mode(), device.gid())),
        })
    }
}

/// Only a file that nobody but this user could have written is believed.
fn load(path: &Path) -> io::Result<Known> {
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    let metadata = file.metadata()?;
    let owner = nix::unistd::geteuid().as_raw();
    if !metadata.is_file() || metadata.uid() != owner || metadata.mode() & 0o022 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut text = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn store(path: &Path, known: &Known) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(directory)?;
    // Several may write at once; each replaces the file as a whole.
    let fresh = directory.join(format!(".host.{}", std::process::id()));
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(&serde_json::to_vec(known)?)
        .and_then(|()| fs::rename(&fresh, path))
        .inspect_err(|_| drop(fs::remove_file(&fresh)))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, os::unix::fs::PermissionsExt};

    use super::*;

    fn version() -> Version {
        serde_json::from_str(r#"{"major":7,"minor":2,"micro":1}"#).unwrap()
    }

    /// Looks up a program's version; true if it had to be asked.
    fn asked(path: &Path, program: &Path) -> bool {
        let asked = Cell::new(false);
        let mut facts = Facts::recall(path).unwrap();
        let ask = || {
            asked.set(true);
            Ok(version())
        };
        assert_eq!(facts.version(program, ask).unwrap(), version());
        facts.keep();
        asked.get()
    }

    #[test]
    fn a_program_is_asked_once_until_its_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/host.json");
        let program = directory.path().join("qemu");
        fs::write(&program, "one").unwrap();
        assert!(asked(&path, &program));
        assert!(!asked(&path, &program));
        fs::write(&program, "other").unwrap();
        assert!(asked(&path, &program));
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_file_that_others_can_write_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host.json");
        let program = Path::new("/proc/self/exe");
        asked(&path, program);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        assert!(asked(&path, program));
        fs::write(&path, "{").unwrap();
        assert!(asked(&path, program));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(directory.path().join("elsewhere"), &path).unwrap();
        assert!(asked(&path, program));
        assert!(!asked(&path, program));
    }

    #[test]
    fn the_counter_is_measured_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host.json");
        let mut facts = Facts::recall(&path).unwrap();
        let first = facts.counter_khz();
        facts.keep();
        let mut again = Facts::recall(&path).unwrap();
        assert_eq!(again.counter_khz(), first);
        assert!(!again.changed);
    }
}
