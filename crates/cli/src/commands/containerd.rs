//! `containerd-shim-casemate-v2`, this binary under another file name: the
//! command that containerd runs. What it does is in
//! [`casemate_shim::containerd`].

use std::{ffi::OsString, path::Path, process::ExitCode};

use anyhow::Result;
use casemate_sandbox::Id;
use casemate_shim::containerd::{self, Commands};

use crate::{
    client::Place,
    commands::{delete, features},
    log::one_line,
};

/// `words` are what follows the command's own name.
pub fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    let features = features::describe().to_string();
    let commands = Commands {
        features: features.as_bytes(),
        force_delete: &force_delete,
    };
    match containerd::main(words, &commands) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("casemate: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn force_delete(root: &Path, id: &Id) -> Result<()> {
    delete::force(&Place {
        id: id.clone(),
        directory: root.join(id),
    })
}
