//! Fuzzing of what parses a guest's or a client's input: the targets of `fuzz/Cargo.toml`.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{command, workspace};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Targets to run; all of them if none is named
    targets: Vec<String>,
}

/// Runs the targets one after the other and stops at the first that finds something.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        command::exists("cargo-fuzz"),
        "cargo-fuzz is not installed\nhint: cargo install cargo-fuzz"
    );
    let known = targets()?;
    for target in &options.targets {
        ensure!(
            known.contains(target),
            "{target} is no fuzz target; there are: {}",
            known.join(", ")
        );
    }
    for target in &known {
        if options.targets.is_empty() || options.targets.contains(target) {
            fuzz(target, options.seconds)?;
        }
    }
    Ok(())
}

/// Without a sanitizer, which needs a nightly compiler: what is looked for are panics, overflows
/// and hangs, and the crates that parse are almost free of unsafe code.
fn fuzz(target: &str, seconds: u64) -> Result<()> {
    command::run(
        Command::new(env!("CARGO"))
            .current_dir(workspace::root())
            .args(["fuzz", "run", "--sanitizer", "none", target, "--"])
            .arg(format!("-max_total_time={seconds}")),
    )
}

fn targets() -> Result<Vec<String>> {
    let list = command::output(
        Command::new(env!("CARGO"))
            .current_dir(workspace::root())
            .args(["fuzz", "list"]),
    )?;
    Ok(list.lines().map(str::to_string).collect())
}
