//! What pods and containers of containerd cost with Casemate beside runc, and what an idle pod
//! weighs. The clients are those of the end-to-end tests, which do the measuring
//! (`tests/e2e/measurements/pod.rs`); this shows it.

use std::process::Command;

use anyhow::{Context, Result};
use casemate_bench::Samples;
use casemate_bench::report::{Row, Table};
use serde_json::Value;

use super::Program;
use crate::{clients, command, workspace};

/// Options of `cargo xtask bench pod`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Runs of each, of which the median is shown
    #[arg(long, default_value_t = 20)]
    runs: usize,
    #[command(flatten)]
    program: Program,
}

/// Measures and prints a table for each way to start, and the weights.
pub(crate) fn run(options: &Options) -> Result<()> {
    clients::run()?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(workspace::root())
        .env("CASEMATE_BIN", options.program.path()?)
        .args(["run", "--quiet", "--package", "casemate-e2e"])
        .args(["--example", "pod", "--"])
        .arg(options.runs.to_string());
    let measured: Value = serde_json::from_str(&command::output(&mut cargo)?)?;
    for table in list(&measured["tables"])? {
        let rows = list(table)?.iter().map(row).collect::<Result<_>>()?;
        println!("{}", Table::new("by containerd", "s", rows).text());
    }
    for pod in list(&measured["weights"])? {
        print_weights(pod)?;
    }
    Ok(())
}

fn row(measured: &Value) -> Result<Row> {
    let seconds = list(&measured["seconds"])?.iter().map(Value::as_f64);
    let seconds: Option<Vec<f64>> = seconds.collect();
    Ok(Row {
        name: text(&measured["name"])?.to_owned(),
        samples: seconds
            .and_then(Samples::new)
            .context("times are numbers")?,
    })
}

fn print_weights(pod: &Value) -> Result<()> {
    println!(
        "\nproportional set size of an idle pod of one container, {}:",
        text(&pod["runtime"])?
    );
    let mut sum = 0.0;
    for process in list(&pod["processes"])? {
        let mib = process["kib"].as_f64().context("a weight is a number")? / 1024.0;
        sum += mib;
        println!("  {:24} {mib:>7.1} MiB", text(&process["name"])?);
    }
    println!("  {:24} {sum:>7.1} MiB", "all");
    Ok(())
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().context("the measurement gave no list")
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("the measurement gave no text")
}
