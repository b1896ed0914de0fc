//! `create`: makes a container whose process waits for `start`.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    arguments::{Create, Global},
    launch,
};

/// # Errors
/// Why the container was not made; nothing is left then.
pub fn run(global: &Global, arguments: &Create) -> Result<ExitCode> {
    launch::launch(global, arguments, false)?;
    Ok(ExitCode::SUCCESS)
}
