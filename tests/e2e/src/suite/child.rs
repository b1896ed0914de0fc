//! The process of one scenario.

use std::env;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::{Module, SKIPPED, TRIAL, trial_name};
use nix::sys::signal::SigSet;

use crate::host::Host;
use crate::leak::{Before, SETTLE};
use crate::runtime::{Kind, Runtime};
use crate::scenario::{Scenario, Skip};
use crate::{isolation, processes, reaper, templates};

/// The folder the suite has made for this scenario, and the one for all.
pub(super) const FOLDERS: [&str; 2] = ["CASEMATE_E2E_DIR", "CASEMATE_E2E_SHARED"];

/// "off": no scenario uses templates, but those of templates themselves.
const TEMPLATES: &str = "CASEMATE_E2E_TEMPLATES";

pub(super) fn main(name: &str, modules: Vec<Module>) -> ExitCode {
    match prepare(name, modules) {
        Ok((host, scenario)) => conclude(Arc::new(host), &scenario),
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn prepare(name: &str, modules: Vec<Module>) -> Result<(Host, Scenario)> {
    let (kind, scenario) = find(name, modules).with_context(|| format!("no trial {name}"))?;
    let folder = |variable: &str| {
        env::var_os(variable)
            .map(PathBuf::from)
            .context(variable.to_owned())
    };
    let (dir, shared) = (folder(FOLDERS[0])?, folder(FOLDERS[1])?);
    // The suite blocks the signals it waits for; a runtime must not inherit that.
    SigSet::empty().thread_set_mask()?;
    isolation::enter()?;
    reaper::start()?;
    let runtime = Runtime::find(kind).map_err(|why| anyhow!(why))?;
    let host = Host::new(runtime, dir, shared)?;
    let about_templates = name.contains("::templates::");
    let off = env::var(TEMPLATES).as_deref() == Ok("off");
    let cold = scenario.cold || (off && !about_templates);
    match (kind, cold) {
        (Kind::Runc, _) => {}
        (Kind::Casemate, true) => templates::off(&host)?,
        (Kind::Casemate, false) => templates::share(&host)?,
    }
    Ok((host, scenario))
}

fn find(name: &str, modules: Vec<Module>) -> Option<(Kind, Scenario)> {
    for (module, scenarios) in modules {
        for scenario in scenarios {
            let kind = Kind::ALL
                .into_iter()
                .find(|kind| trial_name(*kind, module, &scenario) == name);
            if let Some(kind) = kind {
                return Some((kind, scenario));
            }
        }
    }
    None
}

/// Runs the scenario and judges it.
fn conclude(host: Arc<Host>, scenario: &Scenario) -> ExitCode {
    watch(Arc::clone(&host), scenario.limit);
    let result = judged(&host, scenario);
    if let Err(error) = &result {
        if let Some(skip) = error.downcast_ref::<Skip>() {
            println!("{skip}");
            return ExitCode::from(SKIPPED as u8);
        }
        report(&host, &format!("{error:#}"));
    }
    end_processes();
    if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn judged(host: &Host, scenario: &Scenario) -> Result<()> {
    let before = Before::now()?;
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (scenario.body)(host)));
    outcome.unwrap_or_else(|_| Err(anyhow!("the scenario panicked")))?;
    let left = before.leftovers(host, SETTLE)?;
    if left.is_empty() {
        return Ok(());
    }
    Err(anyhow!(
        "the scenario passed and left behind:\n  {}",
        left.join("\n  ")
    ))
}

/// Ends the process when the scenario's time is over.
fn watch(host: Arc<Host>, limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        report(&host, &format!("the time limit of {limit:?} is over"));
        end_processes();
        std::process::exit(1);
    });
}

/// Everything that helps to understand a failure.
fn report(host: &Host, error: &str) {
    println!("{error}\n--- commands\n{}", host.transcript());
    let running = processes::ours();
    if !running.is_empty() {
        println!("--- processes");
    }
    for process in running {
        println!("{process}");
    }
    print_logs(host.runtime.state());
    println!("--- again: --exact {}", env::var(TRIAL).unwrap_or_default());
}

/// The logs of sandboxes that are still there: their console, their monitor.
fn print_logs(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            print_logs(&path);
        } else if path.extension().is_some_and(|e| e == "log") {
            let bytes = fs::read(&path).unwrap_or_default();
            let tail = &bytes[bytes.len().saturating_sub(4000)..];
            println!("--- {}\n{}", path.display(), String::from_utf8_lossy(tail));
        }
    }
}

/// Kills whatever the scenario has started and is still there.
pub(super) fn end_processes() {
    for _ in 0..100 {
        let running = processes::ours();
        if running.is_empty() {
            return;
        }
        for process in running {
            // It may have ended by itself meanwhile.
            let _ = process.kill();
        }
        thread::sleep(Duration::from_millis(20));
    }
}
