//! What a pod costs a node beside what its containers use: the `overhead` of a RuntimeClass.

use std::time::Duration;

use anyhow::{Context, Result};
use casemate_bench::{
    bundle::Bundle,
    flat, memory,
    runtime::{Running, Runtime},
};
use serde_json::Value;

use super::Program;

/// Options of `cargo xtask bench overhead`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds for which the pod is left alone before and while it is measured
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    #[command(flatten)]
    program: Program,
}

/// Measures an idle pod of one container beside its first, which only waits, as Kubernetes makes
/// them, and prints a table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let subject = super::subject(options.program.path()?, None);
    let bundle = Bundle::new(&subject, folder.path(), None)?;
    bundle.set_program(&["sleep", "100000"])?;
    let runtime = Runtime::casemate(&subject, &super::variant(), folder.path())?;
    let first = runtime.run_detached(&bundle, "overhead")?;
    flat::join(&bundle, &first)?;
    let member = runtime.run_detached(&bundle, "overhead-1")?;
    let wait = Duration::from_secs(options.seconds);
    std::thread::sleep(wait);
    let before = memory::of_sandbox(&first)?.nanoseconds()?;
    std::thread::sleep(wait);
    let weight = memory::of_sandbox(&first)?;
    let used = weight.nanoseconds()? - before;

    println!("{:12} {:>12} {:>16}", "", "own", "of the guest's");
    for (role, own, guest) in weight.own_and_guest_mib() {
        println!("{role:12} {own:>8.1} MiB {guest:>12.1} MiB");
    }
    let own = weight.pss_mib() - weight.guest_mib();
    println!(
        "{:12} {own:>8.1} MiB {:>12.1} MiB",
        "all",
        weight.guest_mib()
    );
    let workload = usage_mib(&first)? + usage_mib(&member)?;
    println!("\nof the guest's, the containers use {workload:.1} MiB");
    println!(
        "idle pod without them:             {:.1} MiB",
        weight.pss_mib() - workload
    );
    println!(
        "and with all of its machine's memory: {:.1} MiB",
        own + weight.machine_mib()
    );
    let cores = used as f64 / wait.as_nanos() as f64 * 1000.0;
    println!("processor time while it is idle:   {cores:.1} thousandths of one");
    Ok(())
}

/// What a container's cgroup in the guest counts, its files' cache included.
fn usage_mib(container: &Running) -> Result<f64> {
    let told: Value = serde_json::from_str(&container.call("events", &["--stats"])?)?;
    let usage = &told["data"]["memory"]["usage"]["usage"];
    Ok(usage.as_f64().with_context(|| told.to_string())? / f64::from(1 << 20))
}
