//! `kill`: sends a signal to a container's init, or to all of its processes.

use std::process::ExitCode;

use anyhow::{Context, Result};
use casemate_sandbox::policy::{Operation, allow};
use nix::sys::signal::Signal;

use crate::{
    arguments::{Global, Kill},
    client::{INIT, Monitor, Place, block_on},
};

/// Highest signal number of Linux (SIGRTMAX).
const MAX_SIGNAL: u32 = 64;

/// # Errors
/// When the container does not run, or the signal is none.
pub fn run(global: &Global, arguments: &Kill) -> Result<ExitCode> {
    let signal = parse(&arguments.signal)?;
    let place = Place::of(global, &arguments.id)?;
    let state = place.state()?;
    // runc: with --all a stopped container is no error.
    if arguments.all && state.status == casemate_sandbox::state::Status::Stopped {
        return Ok(ExitCode::SUCCESS);
    }
    allow(Operation::Signal, state.status)?;
    block_on(async {
        Monitor::connect(&place)?
            .kill(INIT, signal, arguments.all)
            .await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A number, or a name with or without SIG.
pub fn parse(text: &str) -> Result<u32> {
    if let Ok(number) = text.parse::<u32>() {
        anyhow::ensure!(
            (1..=MAX_SIGNAL).contains(&number),
            "unknown signal {text:?}"
        );
        return Ok(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    let signal: Signal = name
        .parse()
        .ok()
        .with_context(|| format!("unknown signal {text:?}"))?;
    Ok(signal as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("hup", 1),
            ("34", 34),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "SIGNOTHING", "-9", "9x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
