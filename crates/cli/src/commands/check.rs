//! `check`: whether and how well this host can isolate containers, with what to
//! do where it cannot.

use std::process::ExitCode;

use anyhow::Result;

use crate::arguments::Global;

/// # Errors
/// For a bad configuration.
pub fn run(global: &Global) -> Result<ExitCode> {
    let _ = global;
    Ok(ExitCode::SUCCESS)
}
