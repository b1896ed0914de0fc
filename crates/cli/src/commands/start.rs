//! `start`: lets the process of a created container run.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    arguments::{Container, Global},
    client::{INIT, Monitor, Place, block_on},
};

/// # Errors
/// When the container is not waiting for it, or its program does not execute.
pub fn run(global: &Global, arguments: &Container) -> Result<ExitCode> {
    let place = Place::of(global, &arguments.id)?;
    let state = place.state()?;
    casemate_sandbox::policy::allow(casemate_sandbox::policy::Operation::Start, state.status)?;
    block_on(async { Monitor::connect(&place)?.start(INIT).await })?;
    Ok(ExitCode::SUCCESS)
}
