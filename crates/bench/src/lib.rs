//! How fast and how heavy containers are: Casemate beside other runtimes and a bare
//! virtual machine, measured as users see them, by their command lines.
//!
//! `casemate bench` is this crate's front door; `cargo xtask bench` adds what only
//! developers need. It links none of the crates that it measures. Whatever is
//! compared takes turns in one go, so that ratios hold on a noisy machine, and each
//! measurement ends as a [`Report`]: a table for people, JSON, or a chart.

#![forbid(unsafe_code)]

pub mod bundle;
mod chart;
pub mod command;
pub mod cpio;
mod exec;
mod file;
pub mod flat;
mod interruption;
pub mod machine;
pub mod memory;
mod network;
mod options;
mod parallel;
mod podman;
mod probe;
pub mod report;
pub mod runtime;
mod samples;
mod start;
mod subject;
pub mod turns;

use anyhow::{Result, ensure};

pub use options::{Common, Measurement, Options};
pub use report::Report;
pub use samples::Samples;
pub use subject::{Subject, Variant};

/// Runs one measurement and shows it as the options say.
///
/// # Errors
/// When this is not root, what is measured does not work here, or a file cannot be
/// written. That a runtime to compare with is missing is no error: the report says so.
pub fn run(subject: &Subject, options: &Options) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "containers are made by root: run it as root"
    );
    let common = options.measurement.common();
    ensure!(common.runs != Some(0), "--runs: at least one");
    Report::check(common)?;
    interruption::listen()?;
    let report = match &options.measurement {
        Measurement::Start(options) => start::measure(subject, options),
        Measurement::Exec(options) => exec::measure(subject, options),
        Measurement::Memory(options) => memory::measure(subject, options),
        Measurement::Parallel(options) => parallel::measure(subject, options),
        Measurement::File(options) => file::measure(subject, options),
        Measurement::Network(options) => network::measure(subject, options),
    }?;
    report.show(common)
}
