//! `devices`: the jailed process behind a VM's file share and vsock.

use std::process::ExitCode;

use anyhow::{Result, anyhow};

use crate::arguments::Devices;

/// # Errors
/// When the jail cannot be closed or the command line is not the monitor's.
pub fn run(arguments: &Devices) -> Result<ExitCode> {
    // Its error holds a thread's panic, which anyhow cannot share.
    casemate_devices::main(arguments.arguments.iter().cloned())
        .map_err(|error| anyhow!("{error}"))?;
    Ok(ExitCode::SUCCESS)
}
