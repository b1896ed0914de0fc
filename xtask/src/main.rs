//! Tasks of the repository: `cargo xtask <task>`.
//!
//! One file (or folder) a task. `./quickstart` and `./test` call these; nothing here is
//! part of what is installed.
#![forbid(unsafe_code)]

mod bench;
mod cache;
mod check;
mod clients;
mod command;
mod e2e;
mod fuzz;
mod guest;
mod image;
mod lab;
mod trace;
#[cfg(test)]
mod waits;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the Casemate repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Format, lints, unit tests and the policy on dependencies
    Check(check::Options),
    /// Build the guest: kernel and initrd, into build/guest
    Guest(guest::Options),
    /// Put names of functions into a crash of the guest's kernel
    Trace(trace::Options),
    /// Build the container images of the tests and the quickstart, into build/images
    Image(image::Options),
    /// Unpack the clients that the end-to-end tests start by themselves, into build/clients
    Clients,
    /// Run the end-to-end tests against the release binary
    E2e(e2e::Options),
    /// Boot an emulated host with KVM and prove there what this machine cannot
    Lab(lab::Options),
    /// Feed the parsers of foreign input with random input
    Fuzz(fuzz::Options),
    /// Measure
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Check(options) => check::run(&options),
        Task::Guest(options) => guest::run(&options),
        Task::Trace(options) => trace::run(&options),
        Task::Image(options) => image::run(&options),
        Task::Clients => clients::run(),
        Task::E2e(options) => e2e::run(&options),
        Task::Lab(options) => lab::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Bench(options) => bench::run(&options),
    }
}
