//! The directories of a container that is being made.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use casemate_sandbox::{layout, ledger::Ledger};

use crate::client::Place;

/// A container's directory, claimed by making it, and with the first container
/// of a sandbox that of the sandbox; undone when dropped.
pub(super) struct Claim {
    /// The directory of the sandbox.
    pub(super) sandbox: PathBuf,
    /// What goes if the container is not made, in this order.
    made: Vec<PathBuf>,
}

impl Claim {
    /// Claims the place of a container in the sandbox with the directory
    /// `sandbox`, or else in one of its own.
    pub(super) fn of(place: &Place, sandbox: Option<&Path>) -> Result<Self> {
        let directory = &place.directory;
        let context = || directory.display().to_string();
        make_container(place)?;
        let mut claim = Self {
            sandbox: PathBuf::new(),
            made: vec![directory.clone()],
        };
        match sandbox {
            Some(sandbox) => {
                layout::join_sandbox(directory, sandbox).with_context(context)?;
                claim.sandbox = sandbox.to_owned();
            }
            None => {
                claim.sandbox = layout::make_sandbox(directory).with_context(context)?;
                claim.made.insert(0, claim.sandbox.clone());
            }
        }
        Ok(claim)
    }

    /// The container is there.
    pub(super) fn keep(mut self) {
        self.made.clear();
    }
}

fn make_container(place: &Place) -> Result<()> {
    let root = place.root();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .with_context(|| format!("state directory {}", root.display()))?;
    match fs::create_dir(&place.directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!(
                "container with given ID already exists: {:?}",
                place.id.as_str()
            )
        }
        Err(error) => return Err(error).with_context(|| place.directory.display().to_string()),
    }
    // What is in it is for root alone.
    fs::set_permissions(&place.directory, Permissions::from_mode(0o700))
        .with_context(|| place.directory.display().to_string())
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
