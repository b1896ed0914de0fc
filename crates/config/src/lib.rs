//! The configuration of Casemate: what an administrator may set once for
//! every sandbox of a host.
//!
//! Every key is defined in one place, [`keys`](mod@keys): its type, the values
//! it accepts, its default and its description. Parsing, the refusal of
//! unknown keys, the reference page and the commented default file all come
//! from that definition, so none of them can go stale on its own.
//!
//! Everything has a default, so no file is needed. Where there are files,
//! `/etc/casemate/config.toml` is read first and then `/etc/casemate/config.d/*.toml`
//! in the order of their names; a later value replaces an earlier one, key by
//! key. A file named on the command line is read instead of all of these.
//!
//! Annotations of a pod may change keys for its sandbox, as far as
//! `pod.annotations` allows: [`Config::with_annotations`].
//!
//! The command line reads the files and hands the resolved [`Config`] on as
//! JSON, so that every process of a sandbox sees the same values even when a
//! file changes meanwhile.

#![forbid(unsafe_code)]

mod allow;
mod annotations;
mod choice;
mod definition;
mod document;
mod domain;
mod error;
mod kata;
mod keys;
mod nearest;
mod reference;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

pub use annotations::{AnnotationError, AnnotationProblem, PREFIX as ANNOTATION_PREFIX};
pub use choice::{Accelerator, CachePolicy, Hypervisor, Ksm, LogLevel, Templates, Tier};
pub use error::Error;
pub use kata::kata_markdown;
pub use keys::{Agent, Config, Guest, Log, Machine, Pod, Qemu, Share, Template, Vmm};
pub use reference::{default_file, reference_markdown};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/casemate/config.toml";

/// The folder of the files that add to [`DEFAULT_FILE`].
pub const DROP_IN_DIRECTORY: &str = "/etc/casemate/config.d";

impl Config {
    /// Reads the configuration: the file `explicit` alone, which must exist,
    /// or [`DEFAULT_FILE`] and its drop-ins as far as they exist.
    pub fn load(explicit: Option<&Path>) -> Result<Self, Error> {
        match explicit {
            Some(file) => {
                let mut config = Self::default();
                config.apply_file(file)?;
                Ok(config)
            }
            None => Self::load_layers(Path::new(DEFAULT_FILE), Path::new(DROP_IN_DIRECTORY)),
        }
    }

    /// Reads `file` and then the drop-ins of `directory`, either of which may
    /// be missing.
    pub fn load_layers(file: &Path, directory: &Path) -> Result<Self, Error> {
        let mut config = Self::default();
        match config.apply_file(file) {
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
        for drop_in in drop_ins(directory)? {
            config.apply_file(&drop_in)?;
        }
        Ok(config)
    }

    /// Sets what `text` has, in the form of a configuration file; `origin` is
    /// what errors call it.
    pub fn apply_text(&mut self, origin: &str, text: &str) -> Result<(), Error> {
        document::apply(self, Path::new(origin), text)
    }

    fn apply_file(&mut self, file: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::Read {
            path: file.to_owned(),
            source,
        })?;
        document::apply(self, file, &text)
    }
}

/// The `*.toml` files of `directory` in the order of their names.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let read_error = |source| Error::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(read_error)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(read_error)?.path();
        if path.extension() == Some(OsStr::new("toml")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
