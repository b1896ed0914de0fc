//! Measurements.

mod boot;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Subcommand)]
enum Measurement {
    /// Time from the VMM's start to the guest's init, for each kind of machine
    Boot(boot::Options),
}

/// Runs one measurement and prints its table.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.measurement {
        Measurement::Boot(options) => boot::run(options),
    }
}
