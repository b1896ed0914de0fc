//! `pause`: freezes every process of a container.

use std::process::ExitCode;

use anyhow::Result;
use casemate_sandbox::policy::{Operation, allow};

use crate::{
    arguments::{Container, Global},
    client::{Monitor, Place, block_on},
};

/// # Errors
/// When the container does not run, or is paused already.
pub fn run(global: &Global, arguments: &Container) -> Result<ExitCode> {
    let place = Place::of(global, &arguments.id)?;
    allow(Operation::Pause, place.state()?.status)?;
    block_on(async { Monitor::connect(&place)?.freeze(true).await })?;
    Ok(ExitCode::SUCCESS)
}
