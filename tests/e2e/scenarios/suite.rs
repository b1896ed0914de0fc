//! The suite itself: what it looks for, it finds.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::leak::{Before, SETTLE};
use casemate_e2e::{Host, Scenario, isolation, processes, scenarios};
use nix::sys::signal::Signal;

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![leaks_are_found, held_streams_are_found]
}

/// Each kind of thing that a runtime can leave behind.
fn leaks_are_found(host: &Host) -> Result<()> {
    let before = Before::now()?;
    let process = host.command("sleep").arg("1000").start()?;
    let disk = host.new_folder("disk")?;
    isolation::small_disk(&disk, 1 << 16)?;
    let cgroup = casemate_e2e::cgroups::create(&format!("{}/left", host.cgroup))?;
    let files = [
        "/run/left.sock".into(),
        host.runtime.default_root().join("left"),
        host.temporary().join("left"),
    ];
    for file in &files {
        fs::create_dir_all(file.parent().context("a file in a folder")?)?;
        fs::write(file, "")?;
    }
    let found = before.leftovers(host, Duration::ZERO)?.join("\n");
    let mut wanted = vec![
        "sleep 1000".into(),
        disk.to_string_lossy(),
        cgroup.to_string_lossy(),
    ];
    wanted.extend(files.iter().map(|file| file.to_string_lossy()));
    for name in wanted {
        ensure!(found.contains(&*name), "{name} was not found:\n{found}");
    }

    process.signal(Signal::SIGKILL)?;
    process.finish()?;
    nix::mount::umount(&disk)?;
    fs::remove_dir(cgroup)?;
    for file in &files {
        fs::remove_file(file)?;
    }
    fs::remove_dir_all(host.runtime.default_root())?;
    let left = before.leftovers(host, SETTLE)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// A process that keeps the stream of another one open is named.
fn held_streams_are_found(host: &Host) -> Result<()> {
    let run = host.command("sh").args(["-c", "sleep 1001 & exit 0"]).run();
    let story = format!("{:#}", run.err().context("an error")?);
    ensure!(
        story.contains("held open") && story.contains("sleep 1001"),
        "{story}"
    );
    for holder in processes::ours() {
        holder.kill()?;
    }
    Ok(())
}
