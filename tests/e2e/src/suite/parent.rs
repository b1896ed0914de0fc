//! The process that starts the scenarios' processes and counts.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::sys::signal::{SigSet, Signal};

use super::run::Run;
use super::{Module, only, trial_name};
use crate::runtime::{Kind, Runtime};
use crate::scenario::Scenario;

/// More than one scenario at a time only as far as starts by emulation do not
/// starve each other.
const THREADS: usize = 2;

pub(super) fn main(modules: Vec<Module>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let run = match Run::new() {
        Ok(run) => Arc::new(run),
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    end_on_signal(Arc::clone(&run));
    let trials = match only::wanted(trials(&run, modules)) {
        Ok(trials) => trials,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    let left = run.finish();
    for line in &left {
        println!("left behind: {line}");
    }
    if left.is_empty() {
        conclusion.exit_code()
    } else {
        ExitCode::FAILURE
    }
}

/// Who interrupts the suite gets a clean machine back.
fn end_on_signal(run: Arc<Run>) {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    // Blocked in this thread and in those it starts, which are all there are.
    if signals.thread_block().is_err() {
        return;
    }
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            run.abort();
            eprintln!("ended by {signal}");
            std::process::exit(128 + signal as i32);
        }
    });
}

fn trials(run: &Arc<Run>, modules: Vec<Module>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (module, scenarios) in modules {
        for scenario in scenarios {
            for kind in Kind::ALL {
                let name = trial_name(kind, module, &scenario);
                trials.push(trial(Arc::clone(run), kind, name, &scenario));
            }
        }
    }
    trials
}

fn trial(run: Arc<Run>, kind: Kind, name: String, scenario: &Scenario) -> Trial {
    let (only_vm, limit) = (scenario.only_vm, scenario.limit);
    Trial::ignorable_test(name.clone(), move || {
        let skipped = |why: &str| Ok(Completion::ignored_with(format!("skipped: {why}")));
        match (kind, only_vm, Runtime::find(kind)) {
            (Kind::Runc, Some(reason), _) => skipped(reason),
            (Kind::Runc, None, Err(why)) => skipped(&why),
            // The runtime under test must be there.
            (Kind::Casemate, _, Err(why)) => Err(Failed::from(why)),
            (Kind::Runc, None, Ok(_)) => reference(&run, &name, limit),
            (Kind::Casemate, _, Ok(_)) => attempt(&run, &name, limit),
        }
    })
}

fn attempt(run: &Run, name: &str, limit: Duration) -> Result<Completion, Failed> {
    let judgement = run.execute(name, limit);
    judgement.map_err(|e| Failed::from(format!("{e:#}")))?
}

/// The runtime under test must pass each time; runc and its shim have races of their own. They
/// prove that a scenario can be passed, for which one of two attempts is enough.
fn reference(run: &Run, name: &str, limit: Duration) -> Result<Completion, Failed> {
    attempt(run, name, limit).or_else(|failed| {
        let why = failed.message().unwrap_or_default();
        let first = why.lines().next().unwrap_or_default();
        println!("{name} failed and is tried once more: {first}");
        attempt(run, name, limit)
    })
}
