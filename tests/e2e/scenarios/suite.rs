//! The suite itself: what it looks for, it finds.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::leak::{Before, SETTLE};
use casemate_e2e::{Exit, Host, Scenario, Size, isolation, processes, scenarios};
use nix::sys::signal::Signal;

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![leaks_are_found, held_streams_are_found, typing]
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

/// A shell on a terminal has what a user gives it, and its end is seen.
fn typing(host: &Host) -> Result<()> {
    const SOON: Duration = Duration::from_secs(10);
    let (small, large) = (size(10, 50), size(33, 111));
    let shell = || host.command("sh").env("PS1", "here> ").on_terminal(small);
    let mut typist = shell()?;
    typist.await_text("here> ", SOON)?;
    typist.type_text("tty; stty size\r")?;
    typist.await_text("/dev/pts/", SOON)?;
    typist.await_text("10 50\r\n", SOON)?;
    typist.resize(large)?;
    // One job from the first word to the last: between two of them the key would
    // reach nobody.
    typist.type_text("sh -c 'stty size; exec sleep 1000'\r")?;
    typist.await_text("33 111\r\n", SOON)?;
    typist.type_text("\x03")?;
    typist.await_text("here> ", SOON)?;
    let missing = typist.await_text("never shown", Duration::from_millis(50));
    let story = format!("{:#}", missing.err().context("an error")?);
    ensure!(story.contains("33 111"), "{story}");
    typist.type_text("exit 7\r")?;
    let ended = typist.finish()?.exits(7)?;
    ensure!(ended.text().ends_with("exit 7"), "{ended}");

    let mut typist = shell()?;
    typist.await_text("here> ", SOON)?;
    typist.type_text("exec sleep 1000\r")?;
    typist.await_text("1000\r\n", SOON)?;
    typist.hang_up()?;
    ensure!(typist.exit_within(SOON)? == Exit::Signal(Signal::SIGHUP as i32));
    Ok(())
}

fn size(rows: u16, columns: u16) -> Size {
    Size { rows, columns }
}
