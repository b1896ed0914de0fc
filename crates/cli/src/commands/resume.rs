//! `resume`: lets a paused container go on.

use std::process::ExitCode;

use anyhow::Result;
use casemate_sandbox::policy::{Operation, allow};

use crate::{
    arguments::{Container, Global},
    client::{Monitor, Place, block_on},
};

/// # Errors
/// When the container is not paused.
pub fn run(global: &Global, arguments: &Container) -> Result<ExitCode> {
    let place = Place::of(global, &arguments.id)?;
    allow(Operation::Resume, place.state()?.status)?;
    block_on(async { Monitor::connect(&place)?.freeze(false).await })?;
    Ok(ExitCode::SUCCESS)
}
