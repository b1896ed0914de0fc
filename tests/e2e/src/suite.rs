//! The main of the suite: a trial for each scenario and runtime, each in a
//! process of its own, and the look at what the whole run has left.

mod alone;
mod child;
mod only;
mod parent;
mod run;

use std::env;
use std::process::ExitCode;

use crate::runtime::Kind;
use crate::scenario::Scenario;
pub use alone::alone;

/// A module's name and its scenarios.
pub type Module = (&'static str, Vec<Scenario>);

/// Set for the process of one scenario: the trial's name.
const TRIAL: &str = "CASEMATE_E2E_TRIAL";
/// The exit code of a scenario that could not run here; its last line is why.
const SKIPPED: i32 = 77;

/// Runs the suite, or one trial of it where the suite has started this process
/// for that.
pub fn main(modules: Vec<Module>) -> ExitCode {
    match env::var(TRIAL) {
        Ok(name) => child::main(&name, modules),
        Err(_) => parent::main(modules),
    }
}

fn trial_name(kind: Kind, module: &str, scenario: &Scenario) -> String {
    format!("{kind}::{module}::{}", scenario.name)
}
