//! The scenarios. Each function in these modules is run once with runc and once
//! with casemate; see `tests/README.md`.

use std::process::ExitCode;

use casemate_e2e::docker::Release;
use casemate_e2e::without_templates;

mod annotations;
mod applications;
mod bad_input;
mod bad_requests;
mod command_line;
mod containerd;
mod control;
mod docker;
mod engine;
mod exec;
mod files;
mod idle;
mod insight;
mod installation;
mod kill_matrix;
mod kubernetes;
mod life_cycle;
mod many;
mod measured;
mod network;
mod podman_build;
mod podman_life;
mod pods;
mod resources;
mod run;
mod sight;
mod soak;
mod streams;
mod suite;
mod templates;
mod terminal;
mod turns;

fn main() -> ExitCode {
    casemate_e2e::main(vec![
        ("suite", suite::scenarios()),
        ("run", run::scenarios()),
        ("measured", measured::scenarios()),
        ("streams", streams::scenarios()),
        ("sight", sight::scenarios()),
        ("files", files::scenarios()),
        ("life_cycle", life_cycle::scenarios()),
        ("command_line", command_line::scenarios()),
        ("installation", installation::scenarios()),
        ("bad_input", bad_input::scenarios()),
        ("bad_requests", bad_requests::scenarios()),
        ("engine", engine::scenarios()),
        ("exec", exec::scenarios()),
        ("control", control::scenarios()),
        ("resources", resources::scenarios()),
        ("annotations", annotations::scenarios()),
        ("docker20", docker::scenarios(Release::V20)),
        ("docker28", docker::scenarios(Release::V28)),
        ("containerd16", containerd::scenarios(containerd::V16)),
        ("containerd17", containerd::scenarios(containerd::V17)),
        ("containerd21", containerd::scenarios(containerd::V21)),
        ("kubernetes16", kubernetes::scenarios(containerd::V16)),
        ("kubernetes21", kubernetes::scenarios(containerd::V21)),
        ("sandboxes21", kubernetes::by_sandbox_api()),
        ("terminal", terminal::scenarios()),
        ("podman_life", podman_life::scenarios()),
        ("podman_build", podman_build::scenarios()),
        ("kill_matrix", kill_matrix::scenarios()),
        ("idle", idle::scenarios()),
        ("insight", insight::scenarios()),
        ("many", many::scenarios()),
        ("turns", turns::scenarios()),
        ("network", network::scenarios()),
        ("applications", applications::scenarios()),
        ("soak", soak::scenarios()),
        ("pods", pods::scenarios()),
        ("templates", templates::scenarios()),
        ("cold_run", without_templates(run::scenarios())),
        (
            "cold_life_cycle",
            without_templates(life_cycle::scenarios()),
        ),
        ("cold_exec", without_templates(exec::scenarios())),
        ("cold_engine", without_templates(engine::scenarios())),
        ("cold_containerd", without_templates(containerd::basics())),
    ])
}
