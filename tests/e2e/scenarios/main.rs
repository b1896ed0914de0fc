//! The scenarios. Each function in these modules is run once with runc and once
//! with casemate; see `tests/README.md`.

use std::process::ExitCode;

use casemate_e2e::docker::Release;

mod bad_input;
mod command_line;
mod control;
mod docker;
mod engine;
mod exec;
mod files;
mod insight;
mod kill_matrix;
mod life_cycle;
mod many;
mod network;
mod pods;
mod resources;
mod run;
mod sight;
mod streams;
mod suite;

fn main() -> ExitCode {
    casemate_e2e::main(vec![
        ("suite", suite::scenarios()),
        ("run", run::scenarios()),
        ("streams", streams::scenarios()),
        ("sight", sight::scenarios()),
        ("files", files::scenarios()),
        ("life_cycle", life_cycle::scenarios()),
        ("command_line", command_line::scenarios()),
        ("bad_input", bad_input::scenarios()),
        ("engine", engine::scenarios()),
        ("exec", exec::scenarios()),
        ("control", control::scenarios()),
        ("resources", resources::scenarios()),
        ("docker20", docker::scenarios(Release::V20)),
        ("docker28", docker::scenarios(Release::V28)),
        ("kill_matrix", kill_matrix::scenarios()),
        ("insight", insight::scenarios()),
        ("many", many::scenarios()),
        ("network", network::scenarios()),
        ("pods", pods::scenarios()),
    ])
}
