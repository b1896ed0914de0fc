//! `checkpoint` and `restore`: refused, with what to use.

use std::process::ExitCode;

use anyhow::{Result, bail};

/// # Errors
/// Always.
pub fn run(verb: &str) -> Result<ExitCode> {
    bail!(
        "{verb} is not supported: the state of a virtual machine is not what CRIU stores; \
         use `pause` and `resume` to halt a container, or a volume to keep its data"
    )
}
