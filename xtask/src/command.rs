//! Other programs, run with errors that say which one failed and what it said.

use std::process::Command;

use anyhow::{Context, Result, bail};

pub(crate) use casemate_bench::command::{exists, output, program, shown};

/// Runs `command` with the caller's terminal, showing what is run.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", program(command)))?;
    if !status.success() {
        bail!("{}: {status}", shown(command));
    }
    Ok(())
}
