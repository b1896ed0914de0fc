//! `memory`: what sandboxes take of the host's memory, by process and by kind.

mod shown;

use std::{collections::BTreeMap, fs, io, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use casemate_sandbox::{layout, memory, state::Status};
use serde_json::json;

use crate::{
    arguments::{Format, Global, Memory},
    client::{Monitor, Place, block_on},
};

/// A sandbox that lives, with what it weighs.
struct Sandbox {
    containers: Vec<String>,
    memory: memory::Sandbox,
}

/// # Errors
/// When there is no such container, its sandbox does not live, or its processes
/// cannot be looked at.
pub fn run(global: &Global, arguments: &Memory) -> Result<ExitCode> {
    let groups = match &arguments.id {
        Some(id) => vec![members(global, id)?],
        None => all(global)?,
    };
    let mut sandboxes = Vec::new();
    for places in groups {
        match block_on(weigh(&places)) {
            Ok(sandbox) => sandboxes.push(sandbox),
            Err(error) if arguments.id.is_some() => return Err(error),
            // One that has just ended is none of all that live.
            Err(_) if places[0].living_sandbox().is_none() => {}
            Err(error) => return Err(error),
        }
    }
    match arguments.format {
        Format::Json => {
            let sandboxes: Vec<_> = sandboxes.iter().map(shown::json).collect();
            let told = json!({ "unit": "KiB", "sandboxes": sandboxes });
            println!("{}", serde_json::to_string_pretty(&told)?);
        }
        Format::Table => print!("{}", shown::table(&sandboxes)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The containers of the sandbox that this one is in, itself first.
fn members(global: &Global, id: &str) -> Result<Vec<Place>> {
    let place = Place::of(global, id)?;
    place.state()?;
    if place.living_sandbox().is_none() {
        bail!("container {id:?}: its sandbox does not run");
    }
    let mut others = layout::others_in(&place.directory);
    others.sort();
    let others = others.iter().map(|other| Place::of(global, other));
    std::iter::once(Ok(place)).chain(others).collect()
}

/// The containers of every sandbox that lives.
fn all(global: &Global) -> Result<Vec<Vec<Place>>> {
    let entries = match fs::read_dir(&global.root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("state directory {}", global.root.display()))?,
    };
    let mut groups = BTreeMap::<PathBuf, Vec<Place>>::new();
    for entry in entries {
        let name = entry?.file_name();
        // The sandboxes' own directories are no containers.
        let Some(place) = name.to_str().and_then(|id| Place::of(global, id).ok()) else {
            continue;
        };
        if let Some(sandbox) = place.living_sandbox() {
            groups.entry(sandbox).or_default().push(place);
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    for group in &mut groups {
        group.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
    }
    groups.sort_by(|one, other| one[0].id.as_str().cmp(other[0].id.as_str()));
    Ok(groups)
}

async fn weigh(places: &[Place]) -> Result<Sandbox> {
    let monitor = Monitor::connect(&places[0])?;
    let mut known = vec![("monitor", monitor.pid())];
    let states: Vec<_> = places
        .iter()
        // One that is being made or deleted has none.
        .filter_map(|place| Some((place, place.state().ok()?)))
        .collect();
    let stand_ins = states.iter().map(|(_, state)| state.pid);
    known.extend(
        stand_ins
            .filter(|pid| *pid != 0)
            .map(|pid| ("stand-in", pid)),
    );
    let mut memory = memory::Sandbox::weigh(&places[0].sandbox()?, &known)?;
    // Whose processes besides the first there are, the guest knows, and to ask it
    // takes memory: it comes last.
    for (place, state) in &states {
        if state.status != Status::Running {
            continue;
        }
        for process in Monitor::connect(place)?.processes().await? {
            let Some(pid) = process.host_pid else {
                continue;
            };
            if !known.contains(&("stand-in", pid)) {
                memory.add("stand-in", pid)?;
            }
        }
    }
    Ok(Sandbox {
        containers: places.iter().map(|place| place.id.to_string()).collect(),
        memory,
    })
}
