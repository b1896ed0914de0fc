//! The directories of a container that is being made.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{identifier::Id, layout, ledger::Ledger};

/// A container's directory, claimed by making it, and with the first container
/// of a sandbox that of the sandbox; undone when dropped.
#[derive(Debug)]
pub struct Claim {
    /// The directory of the sandbox.
    pub sandbox: PathBuf,
    /// What goes if the container is not made, in this order.
    made: Vec<PathBuf>,
}

/// Why the place of a container cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is somebody else's.
    #[error("container with given ID already exists: {0:?}")]
    Exists(String),
    /// The file system.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// What was to be made.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

impl Claim {
    /// Claims the place of a container under `root`, in the sandbox with the
    /// directory `sandbox`, or else in one of its own.
    ///
    /// # Errors
    /// [`Error::Exists`]; a full disk.
    pub fn of(root: &Path, id: &Id, sandbox: Option<&Path>) -> Result<Self, Error> {
        let directory = root.join(id);
        make_container(root, &directory, id)?;
        let mut claim = Self {
            sandbox: PathBuf::new(),
            made: vec![directory.clone()],
        };
        match sandbox {
            Some(sandbox) => {
                layout::join_sandbox(&directory, sandbox).map_err(failed(&directory))?;
                claim.sandbox = sandbox.to_owned();
            }
            None => {
                claim.sandbox = layout::make_sandbox(&directory).map_err(failed(&directory))?;
                claim.made.insert(0, claim.sandbox.clone());
            }
        }
        Ok(claim)
    }

    /// The container is there, or somebody else answers for the directories.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

fn make_container(root: &Path, directory: &Path, id: &Id) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .map_err(failed(root))?;
    match fs::create_dir(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::Exists(id.to_string()));
        }
        Err(error) => return Err(failed(directory)(error)),
    }
    // What is in it is for root alone.
    fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed(directory))
}

impl Drop for Claim {
    fn drop(&mut self) {
        for directory in self.made.drain(..).filter(|directory| directory.exists()) {
            if let Err(error) = Ledger::undo(&directory) {
                tracing::error!(%error, "something is left");
            }
        }
    }
}
