//! What a start costs: the whole `run --rm true` of Casemate beside those of runc and crun, and
//! beside a bare boot of the same kernel in QEMU. All in one go, taking turns, so that the
//! ratios hold on a noisy machine.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::boot;
use super::bundle::Bundle;
use super::podman::Podman;
use super::runtime::{Running, Runtime};
use super::turns::{self, Contender, Options};
use crate::command;

/// Measures and prints a table, the split of one start, and what an idle sandbox weighs.
pub(crate) fn run(options: &Options) -> Result<()> {
    let casemate = options.program.path()?;
    let folder = tempfile::tempdir()?;
    let bundle = Bundle::new(folder.path())?;
    let mut contenders = contenders(&casemate, &bundle, folder.path())?;
    turns::take(&mut contenders, options.runs)?;
    turns::print_table(&contenders, "x bare boot");
    idle_sandbox(&casemate, &bundle, folder.path())
}

fn contenders(casemate: &Path, bundle: &Bundle, folder: &Path) -> Result<Vec<Contender>> {
    let bare = boot::Bare::new()?;
    let mut contenders = vec![Contender::new(
        "bare QEMU boot to init and exit",
        move || bare.boot(),
    )];
    let mut runtimes = vec![Runtime::casemate(casemate, folder)];
    runtimes.extend(Runtime::others(bundle, folder));
    for runtime in runtimes {
        let (name, bundle) = (format!("{} run true", runtime.name()), bundle.clone());
        contenders.push(Contender::new(&name, move || {
            command::output(&mut runtime.run(&bundle, "bench")).map(drop)
        }));
    }
    let engine = Podman::new(folder)?;
    for (name, runtime) in [
        ("casemate", casemate.to_owned()),
        ("runc", "/usr/sbin/runc".into()),
    ] {
        if !command::exists("podman") || !runtime.exists() {
            println!("podman with {name} is left out: not installed");
            continue;
        }
        let engine = engine.clone();
        contenders.push(Contender::new(
            &format!("podman run --rm true, {name}"),
            move || engine.run(&runtime),
        ));
    }
    Ok(contenders)
}

/// Where the time of one start goes, and what its processes weigh afterwards.
fn idle_sandbox(casemate: &Path, bundle: &Bundle, folder: &Path) -> Result<()> {
    bundle.set_program(&["sleep", "1000"])?;
    let runtime = Runtime::casemate(casemate, folder);
    let idle = runtime.run_detached(bundle, "idle")?;
    std::thread::sleep(Duration::from_secs(2));
    println!("\nwhere the time of one start goes:");
    print!("{}", idle.call("timeline", &[])?);
    println!("\nproportional set size of an idle sandbox, by process:");
    print_weights(&runtime.root().join("idle/sandbox/ledger"), &idle)
}

/// The processes whose command line or parent belongs to the sandbox.
fn print_weights(ledger: &Path, idle: &Running) -> Result<()> {
    let mut pids = Vec::new();
    for line in fs::read_to_string(ledger)?.lines() {
        let entry: Value = serde_json::from_str(line)?;
        if entry["kind"] == "process" {
            let pid = entry["pid"].as_u64().context("a process has an id")?;
            pids.push((entry["role"].as_str().unwrap_or_default().to_owned(), pid));
        }
    }
    let state: Value = serde_json::from_str(&idle.call("state", &[])?)?;
    pids.push((
        "stand-in".to_owned(),
        state["pid"].as_u64().context("state has a pid")?,
    ));
    pids.push(("monitor".to_owned(), monitor_of("idle")?));
    let mut sum = 0;
    for (role, pid) in pids {
        let kib = pss_kib(pid)?;
        sum += kib;
        println!("  {role:10} {:>7.1} MiB", kib as f64 / 1024.0);
    }
    println!("  {:10} {:>7.1} MiB", "all", sum as f64 / 1024.0);
    Ok(())
}

/// The monitor is in no ledger: it is the one who keeps it.
fn monitor_of(id: &str) -> Result<u64> {
    let wanted = ["casemate", "monitor", "--id", id];
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0).take(wanted.len());
        if words.eq(wanted.map(str::as_bytes)) {
            return Ok(pid);
        }
    }
    bail!("the monitor of {id} is not running")
}

fn pss_kib(pid: u64) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context(path)?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
