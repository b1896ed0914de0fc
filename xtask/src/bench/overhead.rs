//! What a pod costs a node beside what its containers use: the `overhead` of a RuntimeClass.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::bundle::Bundle;
use super::runtime::{Program, Running, Runtime};
use super::weight::{Process, Weight};

/// Options of `cargo xtask bench overhead`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds for which the pod is left alone before and while it is measured
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    #[command(flatten)]
    program: Program,
}

/// Kubernetes counts memory in these.
const MIB: f64 = 1024.0;

/// Measures an idle pod of one container beside its first, which only waits, as Kubernetes makes
/// them, and prints a table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bundle = Bundle::new(folder.path())?;
    bundle.set_program(&["sleep", "100000"])?;
    let runtime = Runtime::casemate(&options.program.path()?, folder.path());
    let first = runtime.run_detached(&bundle, "overhead")?;
    join(&bundle, &first)?;
    let member = runtime.run_detached(&bundle, "overhead-1")?;
    let wait = Duration::from_secs(options.seconds);
    std::thread::sleep(wait);
    let processes = Process::of_sandbox(&first, &[&member])?;
    let before = ticks(&processes)?;
    std::thread::sleep(wait);
    let used = ticks(&processes)? - before;

    println!("{:12} {:>12} {:>16}", "", "own", "of the guest's");
    let mut weights = Vec::new();
    for process in &processes {
        let weight = process.weight()?;
        print_line(&process.role, weight);
        weights.push(weight);
    }
    let sum: Weight = weights.into_iter().sum();
    print_line("all", sum);
    let workload = usage_kib(&first)? + usage_kib(&member)?;
    println!(
        "\nof the guest's, the containers use {:.1} MiB",
        workload as f64 / MIB
    );
    let idle = sum.all().saturating_sub(workload);
    println!(
        "idle pod without them:             {:.1} MiB",
        idle as f64 / MIB
    );
    let most = sum.own + sum.machine;
    println!(
        "and with all of its machine's memory: {:.1} MiB",
        most as f64 / MIB
    );
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("CLK_TCK")?;
    let seconds = used as f64 / per_second as f64;
    let cores = seconds / wait.as_secs_f64() * 1000.0;
    println!("processor time while it is idle:   {cores:.1} thousandths of one");
    Ok(())
}

/// The containers of this bundle are in the sandbox of `first` from now on.
fn join(bundle: &Bundle, first: &Running) -> Result<()> {
    let pid = first.pid()?;
    bundle.edit(|spec| {
        for namespace in spec["linux"]["namespaces"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            let name = match namespace["type"].as_str() {
                Some("network") => "net",
                Some("ipc") => "ipc",
                Some("uts") => "uts",
                _ => continue,
            };
            namespace["path"] = json!(format!("/proc/{pid}/ns/{name}"));
        }
        // The host name is that of the namespace.
        spec.as_object_mut().map(|spec| spec.remove("hostname"));
    })
}

fn ticks(processes: &[Process]) -> Result<u64> {
    processes.iter().map(Process::ticks).sum()
}

fn print_line(name: &str, weight: Weight) {
    let [own, guest] = [weight.own, weight.guest].map(|kib| kib as f64 / MIB);
    println!("{name:12} {own:>8.1} MiB {guest:>12.1} MiB");
}

/// What a container's cgroup in the guest counts, its files' cache included.
fn usage_kib(container: &Running) -> Result<u64> {
    let told: Value = serde_json::from_str(&container.call("events", &["--stats"])?)?;
    let usage = &told["data"]["memory"]["usage"]["usage"];
    Ok(usage.as_u64().with_context(|| told.to_string())? >> 10)
}
