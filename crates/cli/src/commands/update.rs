//! `update`: changes the limits of a container.

use std::{fs, io::Read, path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use casemate_sandbox::{
    policy::{Operation, allow},
    spec,
};
use serde_json::{Map, Value, json};

use crate::{
    arguments::{Global, Update},
    client::{Monitor, Place, block_on},
};

/// # Errors
/// When the container does not run, or a limit cannot be had.
pub fn run(global: &Global, arguments: &Update) -> Result<ExitCode> {
    let place = Place::of(global, &arguments.id)?;
    allow(Operation::Update, place.state()?.status)?;
    let resources = match &arguments.resources {
        Some(path) => read(path)?,
        None => from_flags(arguments)?,
    };
    // What cannot be had at all is refused here, with its field's name.
    spec::update(&resources)?;
    block_on(async { Monitor::connect(&place)?.update(resources).await })?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path != Path::new("-") {
        return fs::read(path).with_context(|| path.display().to_string());
    }
    let mut text = Vec::new();
    std::io::stdin()
        .read_to_end(&mut text)
        .context("standard input")?;
    Ok(text)
}

/// The flags as OCI resources.
fn from_flags(arguments: &Update) -> Result<Vec<u8>> {
    let mut cpu = Map::new();
    for (field, value) in [
        ("period", arguments.cpu_period.map(Value::from)),
        ("quota", arguments.cpu_quota.map(Value::from)),
        ("burst", arguments.cpu_burst.map(Value::from)),
        ("shares", arguments.cpu_share.map(Value::from)),
        ("idle", arguments.cpu_idle.map(Value::from)),
    ] {
        cpu.extend(value.map(|value| (field.to_owned(), value)));
    }
    let mut memory = Map::new();
    for (flag, field, value) in [
        ("--memory", "limit", &arguments.memory),
        (
            "--memory-reservation",
            "reservation",
            &arguments.memory_reservation,
        ),
        ("--memory-swap", "swap", &arguments.memory_swap),
    ] {
        if let Some(text) = value {
            let size = size(text).with_context(|| format!("{flag} {text:?}: not a size"))?;
            memory.insert(field.to_owned(), json!(size));
        }
    }
    let mut resources = Map::new();
    for (name, group) in [("cpu", cpu), ("memory", memory)] {
        if !group.is_empty() {
            resources.insert(name.to_owned(), Value::Object(group));
        }
    }
    if let Some(limit) = arguments.pids_limit {
        resources.insert("pids".to_owned(), json!({ "limit": limit }));
    }
    ensure!(
        !resources.is_empty(),
        "nothing to update: give --resources or a limit"
    );
    Ok(serde_json::to_vec(&resources)?)
}

/// Bytes, or a number with k, m, g or t (of 1024), "b" allowed after it.
fn size(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    if let Ok(plain) = lower.parse::<i64>() {
        return (plain >= -1).then_some(plain);
    }
    let unit = lower.strip_suffix('b').unwrap_or(&lower);
    let shift = match unit.chars().last()? {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        _ => 0,
    };
    let digits = if shift == 0 {
        unit
    } else {
        &unit[..unit.len() - 1]
    };
    let number: i64 = digits.parse().ok().filter(|number| *number >= 0)?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Verb};

    fn resources(line: &str) -> Result<Value> {
        let line = format!("casemate update {line} web");
        let Verb::Update(arguments) = Arguments::try_parse_from(line.split_whitespace())?.verb
        else {
            panic!("another verb")
        };
        Ok(serde_json::from_slice(&from_flags(&arguments)?)?)
    }

    #[test]
    fn flags_become_resources() {
        assert_eq!(
            resources("--memory 64m --memory-swap -1 --pids-limit 7").unwrap(),
            json!({"memory": {"limit": 64 << 20, "swap": -1}, "pids": {"limit": 7}})
        );
        assert_eq!(
            resources("--cpu-quota 50000 --cpu-period 100000 --cpu-share 512").unwrap(),
            json!({"cpu": {"quota": 50000, "period": 100000, "shares": 512}})
        );
        assert!(resources("").is_err());
        assert!(resources("--memory many").is_err());
    }

    #[test]
    fn sizes_have_suffixes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("512", Some(512)),
            ("1k", Some(1024)),
            ("2MB", Some(2 << 20)),
            ("3g", Some(3 << 30)),
            ("10b", Some(10)),
            ("-2", None),
            ("k", None),
            ("", None),
            ("1x", None),
            ("99999999999t", None),
        ] {
            assert_eq!(size(text), expected, "{text}");
        }
    }
}
