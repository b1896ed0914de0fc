//! Real machines: boots a guest in QEMU and looks at it from all sides.
//!
//! Needs root, QEMU and a guest kernel; without them it says so and passes.
//! `CASEMATE_TEST_QEMU` and `CASEMATE_TEST_KERNEL` name others than the usual
//! ones; without the first, what differs between versions of QEMU is also seen
//! with the newest that `cargo xtask clients` has unpacked. It has no test harness, because a machine must be started from a
//! process with one thread.

#[path = "machine/bench.rs"]
mod bench;
#[path = "machine/clones.rs"]
mod clones;
#[path = "machine/devices.rs"]
mod devices;
#[path = "machine/ends.rs"]
mod ends;
#[path = "machine/failures.rs"]
mod failures;
#[path = "machine/guest.rs"]
mod guest;
#[path = "machine/plugging.rs"]
mod plugging;
#[path = "machine/running.rs"]
mod running;
#[path = "machine/scenarios.rs"]
mod scenarios;
#[path = "machine/tap.rs"]
mod tap;
#[path = "machine/templates.rs"]
mod templates;
#[path = "machine/walls.rs"]
mod walls;

use std::{future::Future, pin::Pin, process::ExitCode, time::Instant};

use casemate_hypervisor::Hypervisor;
use guest::Stage;
use tokio::runtime::Runtime;

type Named = (&'static str, Scenario);

type Scenario = for<'a> fn(&'a Stage) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Makes this program a monitor that a scenario kills.
const AS_MONITOR: &str = "--as-monitor";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, options @ ..] = arguments.as_slice()
        && verb == devices::VERB
    {
        return devices::serve(options);
    }
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    let stage = match Stage::set() {
        Ok(stage) => stage,
        Err(reason) => {
            println!("skipped: {reason}");
            return ExitCode::SUCCESS;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    if arguments.iter().any(|argument| argument == AS_MONITOR) {
        runtime.block_on(ends::as_monitor(&stage));
    }
    if wanted.is_some_and(|name| name == "bench") {
        runtime.block_on(bench::run(&stage));
        return ExitCode::SUCCESS;
    }
    play(&runtime, &stage, wanted, scenarios::ALL);
    // The newest program as well, in what differs most between versions.
    if let Some(stage) = stage.with_newest() {
        play(&runtime, &stage, wanted, scenarios::NEWEST);
    }
    ExitCode::SUCCESS
}

fn play(runtime: &Runtime, stage: &Stage, wanted: Option<&String>, scenarios: &[Named]) {
    let capabilities = stage.qemu().capabilities().clone();
    println!("{}, {}", capabilities.program, capabilities.tier);
    for (name, scenario) in scenarios {
        if wanted.is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let start = Instant::now();
        // A failed assertion ends the process with its message and code 101.
        runtime.block_on(scenario(stage));
        println!("{name} ... ok ({:.2?})", start.elapsed());
    }
}
