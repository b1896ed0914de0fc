//! `run`: create, start, wait, delete. In the foreground this process passes
//! signals on and exits as the container does.

use std::process::ExitCode;

use anyhow::Result;

use super::delete;
use crate::{
    arguments::{Global, Run},
    client::{INIT, Monitor, block_on},
    foreground::{self, HeldSignals},
    launch::{Launched, launch},
    log,
};

/// # Errors
/// Why the container did not run.
pub fn run(global: &Global, arguments: &Run) -> Result<ExitCode> {
    let launched = launch(global, &arguments.create, !arguments.detach)?;
    let held = (!arguments.detach).then(HeldSignals::hold).transpose()?;
    let started = block_on(async { Monitor::connect(&launched.place)?.start(INIT).await });
    if let Err(error) = started {
        remove(&launched);
        return Err(error);
    }
    let Some(held) = held else {
        return Ok(ExitCode::SUCCESS);
    };
    let status = block_on(foreground::wait(&launched, INIT, held))?;
    if !arguments.keep {
        remove(&launched);
    }
    Ok(ExitCode::from(status))
}

fn remove(launched: &Launched) {
    if let Err(error) = delete::force(&launched.place) {
        tracing::error!("{}", log::one_line(&error));
    }
}
