//! What pods and containers of containerd cost with Casemate beside runc, and what an idle pod
//! weighs. The clients are those of the end-to-end tests, which do the measuring
//! (`tests/e2e/measurements/pod.rs`); this shows it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::turns::{self, Contender, Options};
use crate::{clients, command, workspace};

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
        let contenders = list(table)?.iter().map(contender);
        turns::print_table(&contenders.collect::<Result<Vec<_>>>()?, "x runc");
    }
    for pod in list(&measured["weights"])? {
        print_weights(pod)?;
    }
    Ok(())
}

fn contender(measured: &Value) -> Result<Contender> {
    let seconds = list(&measured["seconds"])?.iter();
    let times = seconds.map(|one| one.as_f64().map(Duration::from_secs_f64));
    let times: Option<Vec<Duration>> = times.collect();
    Ok(Contender::measured(
        text(&measured["name"])?,
        times.context("a time is a number")?,
    ))
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
