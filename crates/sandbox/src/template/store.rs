//! The folder of the templates:
//!
//! ```text
//! <template.directory>/<key>/      header, state, memory
//!                      .new-<key>  one that is being made, locked by its maker
//!                      .old-<…>    one that is being removed
//!                      <key>.failed  why it could not be made
//!                      maker.log
//! ```
//!
//! A template appears whole, by a rename, and disappears by another one, so
//! nobody needs a lock to use it: whoever has its files open has all of it.

mod files;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

use casemate_hypervisor::TemplateFiles;

use super::{
    fit::{Fit, Key},
    header::Header,
    pages,
};
pub use files::Unfit;
pub(super) use files::{HEADER, MEMORY, STATE, digest};
use files::{bytes_of, of, open, read_header, touch, unchanged};

/// What the name of one that is being made begins with.
pub(super) const NEW: &str = ".new-";
/// What the name of one that is being removed begins with.
pub(super) const OLD: &str = ".old-";
/// What the name of a note about a failure ends with.
pub(super) const FAILED: &str = ".failed";
/// What makers have to say.
pub(super) const LOG: &str = "maker.log";

/// A socket in a folder of the folder must have a path of at most 107 bytes
/// (unix(7)).
const LONGEST_PATH: usize = 60;

/// The folder of the templates.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A template that fits, opened.
#[derive(Debug)]
pub struct Found {
    /// What it says of itself.
    pub header: Header,
    /// What a machine is restored from.
    pub files: TemplateFiles,
}

/// What the store has under a key.
#[derive(Debug)]
pub struct Listed {
    /// The key.
    pub key: Key,
    /// The header, or why it cannot be used.
    pub header: Result<Header, Unfit>,
    /// When it was used last, or made.
    pub used: SystemTime,
    /// What it takes of memory or disk, in bytes.
    pub bytes: u64,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or something in it.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could put templates into it.
    #[error(
        "{path} (template.directory) belongs to somebody else or can be written by others; \
         make it root's with mode 0700, or name another", path = path.display()
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
    },
    /// No socket would fit.
    #[error(
        "{path} (template.directory) is longer than {LONGEST_PATH} bytes; sockets are made in it \
         and have to be short", path = path.display()
    )]
    TooLong {
        /// The folder.
        path: PathBuf,
    },
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

impl Store {
    /// The store in this folder, which need not exist.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// When it cannot be made, or is not root's alone.
    pub fn make(&self) -> Result<(), Error> {
        if self.root.as_os_str().len() > LONGEST_PATH {
            return Err(Error::TooLong {
                path: self.root.clone(),
            });
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        if let Some(parent) = self.root.parent() {
            builder.mode(0o711).create(parent).map_err(failed(parent))?;
        }
        let made = builder.mode(0o700).create(&self.root);
        made.map_err(failed(&self.root))?;
        self.is_ours().map(drop)
    }

    /// Whether the folder is there. Templates are as good as what stands in them:
    /// nobody else may have written it.
    fn is_ours(&self) -> Result<bool, Error> {
        let folder = match fs::metadata(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(failed(&self.root))?,
        };
        let owner = nix::unistd::geteuid().as_raw();
        if !folder.is_dir() || folder.uid() != owner || folder.mode() & 0o022 != 0 {
            return Err(Error::NotOurs {
                path: self.root.clone(),
            });
        }
        Ok(true)
    }

    /// The template that fits, if there is one. One that cannot be used has been
    /// removed when this returns, and the log says why.
    ///
    /// # Errors
    /// When the store itself cannot be used.
    pub fn find(&self, fit: &Fit) -> Result<Option<Found>, Error> {
        if !self.is_ours()? {
            return Ok(None);
        }
        let folder = self.place(fit.key());
        match open(&folder, fit) {
            Ok(found) => {
                // That it was used is of interest when room is needed; nothing
                // else hangs on it.
                let _ = touch(&folder);
                Ok(found)
            }
            Err(unfit) => {
                tracing::warn!(template = %fit.key(), "not used: {unfit}");
                self.remove(fit.key())?;
                Ok(None)
            }
        }
    }

    /// Every template.
    ///
    /// # Errors
    /// When the store itself cannot be used.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut list = Vec::new();
        for name in self.names()? {
            let Ok(key) = name.parse::<Key>() else {
                continue;
            };
            let folder = self.place(&key);
            // One that has just been removed is no longer there.
            let Ok(used) = fs::metadata(&folder).and_then(|folder| folder.modified()) else {
                continue;
            };
            let header = read_header(&folder, &key).and_then(|header| {
                unchanged(&folder, STATE, &header.state)?;
                unchanged(&folder, MEMORY, &header.memory)?;
                Ok(header)
            });
            let bytes = bytes_of(&folder);
            list.push(Listed {
                key,
                header,
                used,
                bytes,
            });
        }
        list.sort_by_key(|template| std::cmp::Reverse(template.used));
        Ok(list)
    }

    /// Reads all of a template and compares it with what was made: some tenths of
    /// a second.
    ///
    /// # Errors
    /// When it is not what was made.
    pub fn verify(&self, header: &Header) -> Result<(), Unfit> {
        let folder = self.place(&header.key);
        let state = unchanged(&folder, STATE, &header.state)?;
        if digest(&state).map_err(of(STATE))? != header.state.sha256 {
            return Err(Unfit::File(STATE));
        }
        let memory = unchanged(&folder, MEMORY, &header.memory)?;
        let contents = pages::contents(&memory).map_err(of(MEMORY))?;
        if contents.sha256 != header.memory.sha256 {
            return Err(Unfit::File(MEMORY));
        }
        Ok(())
    }

    /// Removes a template; whether there was one. Who has its files open keeps
    /// them.
    ///
    /// # Errors
    /// When it is still there.
    pub fn remove(&self, key: &Key) -> Result<bool, Error> {
        let place = self.place(key);
        match fs::rename(&place, self.grave()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(failed(&place))?,
        }
        self.bury()?;
        Ok(true)
    }

    /// Removes what somebody has begun to remove.
    pub(super) fn bury(&self) -> Result<(), Error> {
        let names = self.names()?.into_iter();
        for name in names.filter(|name| name.starts_with(OLD)) {
            let path = self.root.join(name);
            match fs::remove_dir_all(&path) {
                // Somebody else was quicker.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(failed(&path))?,
            }
        }
        Ok(())
    }

    /// A name that nothing has, for what is to be removed.
    pub(super) fn grave(&self) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let own = std::process::id();
        self.root.join(format!("{OLD}{own}-{number}"))
    }

    /// What is in the folder.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        if !self.is_ours()? {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.root).map_err(failed(&self.root))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed(&self.root))?.file_name();
            names.extend(name.into_string());
        }
        Ok(names)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a template is.
    pub(super) fn place(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }
}

#[cfg(test)]
mod tests;
