//! What a start costs: the whole `run --rm true` of Casemate beside those of runc and crun, and
//! beside a bare boot of the same kernel in QEMU. All in one go, taking turns, so that the
//! ratios hold on a noisy machine.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::boot;
use super::bundle::Bundle;
use super::podman::Podman;
use super::runtime::Runtime;
use super::turns::{self, Contender, Options};
use super::weight::Process;
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
    let mut sum = 0;
    for process in Process::of_sandbox(&idle, &[])? {
        let kib = process.weight()?.all();
        sum += kib;
        println!("  {:10} {:>7.1} MiB", process.role, kib as f64 / 1024.0);
    }
    println!("  {:10} {:>7.1} MiB", "all", sum as f64 / 1024.0);
    Ok(())
}
