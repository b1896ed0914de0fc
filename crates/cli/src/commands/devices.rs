//! `devices`: the jailed process behind a VM's file share and vsock.

use std::process::ExitCode;

use anyhow::Result;

use crate::arguments::Devices;

/// # Errors
/// When the jail cannot be closed or the command line is not the monitor's.
pub fn run(arguments: &Devices) -> Result<ExitCode> {
    casemate_devices::run_from_args(arguments.arguments.iter().cloned())?;
    Ok(ExitCode::SUCCESS)
}
