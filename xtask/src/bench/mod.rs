//! Measurements.

pub(crate) mod boot;
mod bundle;
mod exec;
mod network;
mod overhead;
mod pod;
mod podman;
mod runtime;
mod start;
mod turns;
mod weight;

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
    /// The whole `run --rm true` beside runc, crun and a bare boot; memory of an idle sandbox
    Start(turns::Options),
    /// The round trip of `exec ID true` in a container that runs, beside runc and crun
    Exec(turns::Options),
    /// TCP streams and round trips to a container, beside bare QEMU on the same bridge
    Network(network::Options),
    /// Memory and processor time of an idle pod, for the overhead of a RuntimeClass
    Overhead(overhead::Options),
    /// A pod's start and `ctr run` by containerd, beside runc; memory of an idle pod
    Pod(turns::Options),
}

/// Runs one measurement and prints its table.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.measurement {
        Measurement::Boot(options) => boot::run(options),
        Measurement::Start(options) => start::run(options),
        Measurement::Exec(options) => exec::run(options),
        Measurement::Network(options) => network::run(options),
        Measurement::Overhead(options) => overhead::run(options),
        Measurement::Pod(options) => pod::run(options),
    }
}
