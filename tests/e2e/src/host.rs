//! What a scenario is given: a runtime and a place of its own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::command::Command;
use crate::runtime::{Kind, Runtime};

/// The machine as one scenario sees it.
pub struct Host {
    /// The runtime the scenario is run with.
    pub runtime: Runtime,
    /// A folder of the scenario's own. Its path is short, since sockets are
    /// made below it.
    pub dir: PathBuf,
    /// What the scenarios of one run share: the images.
    pub(crate) shared: PathBuf,
    /// The cgroup below which the scenario's containers are.
    pub cgroup: String,
    number: AtomicU32,
    transcript: Mutex<Vec<String>>,
}

impl Host {
    pub(crate) fn new(runtime: Runtime, dir: PathBuf, shared: PathBuf) -> Result<Host> {
        let cgroup = cgroup_of(&dir);
        fs::create_dir_all(dir.join("tmp")).with_context(|| dir.display().to_string())?;
        Ok(Host {
            runtime,
            dir,
            shared,
            cgroup,
            number: AtomicU32::new(0),
            transcript: Mutex::default(),
        })
    }

    /// A command; a program without a path is looked for as usual.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command<'_> {
        Command::new(self, program)
    }

    /// A call of the runtime's command line.
    pub fn oci(&self, arguments: &[&str]) -> Command<'_> {
        self.command(&self.runtime.path).args(arguments)
    }

    /// The reference runtime, to compare with.
    pub fn runc(&self) -> Result<Runtime> {
        Runtime::find(Kind::Runc).map_err(|why| crate::Skip(why).into())
    }

    /// An id for a container that no other scenario uses.
    pub fn new_id(&self) -> String {
        format!("{}-{}", self.cgroup, self.next())
    }

    /// A new empty folder.
    pub fn new_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.dir.join(format!("{name}{}", self.next()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    fn next(&self) -> u32 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// The folder its commands use for temporary files.
    pub fn temporary(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![("TMPDIR".into(), self.temporary().into())]
    }

    /// Keeps a line for the report of a failure.
    pub fn note(&self, line: impl Into<String>) {
        let mut transcript = self
            .transcript
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        transcript.push(line.into());
    }

    /// The last that was noted.
    pub(crate) fn transcript(&self) -> String {
        const MOST: usize = 30;
        let transcript = self
            .transcript
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let skipped = transcript.len().saturating_sub(MOST);
        transcript[skipped..].join("\n")
    }
}

/// The cgroup of the scenario with this folder. The names of the folder and of
/// the one it is in, which belongs to one run of the suite, make it unique.
pub(crate) fn cgroup_of(dir: &Path) -> String {
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    format!("{}-{}", name(dir.parent().unwrap_or(dir)), name(dir))
}
