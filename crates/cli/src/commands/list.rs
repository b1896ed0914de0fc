//! `list`: the containers under a root.

use std::{fs, io, process::ExitCode};

use anyhow::{Context, Result};
use casemate_sandbox::state::{Error, State};

use super::state::Shown;
use crate::arguments::{Format, Global, List};

/// # Errors
/// When the root cannot be read; a container that is being made or removed at
/// this moment is left out.
pub fn run(global: &Global, arguments: &List) -> Result<ExitCode> {
    let containers = read(global)?;
    if arguments.quiet {
        for container in &containers {
            println!("{}", container.id);
        }
        return Ok(ExitCode::SUCCESS);
    }
    match arguments.format {
        Format::Json => println!("{}", serde_json::to_string(&containers)?),
        Format::Table => print_table(&containers),
    }
    Ok(ExitCode::SUCCESS)
}

fn read(global: &Global) -> Result<Vec<Shown>> {
    let entries = match fs::read_dir(&global.root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("state directory {}", global.root.display()))?,
    };
    let mut containers = Vec::new();
    for entry in entries {
        match State::load(&entry?.path()) {
            Ok(state) => containers.push(Shown::from(state)),
            Err(Error::Missing) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
    containers.sort_by(|one, other| one.created.cmp(&other.created));
    Ok(containers)
}

fn print_table(containers: &[Shown]) {
    let heads = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
    let rows = containers.iter().map(|container| {
        [
            container.id.clone(),
            container.pid.to_string(),
            container.status.clone(),
            container.bundle.clone(),
            container.created.clone(),
            container.owner.clone(),
        ]
    });
    let rows: Vec<_> = std::iter::once(heads).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    for row in &rows {
        let cells: Vec<_> = (0..5)
            .map(|column| format!("{:<1$}", row[column], width(column)))
            .collect();
        println!("{}   {}", cells.join("   "), row[5]);
    }
}
