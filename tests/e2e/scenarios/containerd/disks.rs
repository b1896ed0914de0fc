//! Root file systems on disks: containerd's blockfile snapshotter.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{Containerd, Skip};

use super::{Body, SOON, bodies};

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![kept_on_disk, read_only_disk]
}

const SNAPSHOTTER: &str = "--snapshotter=blockfile";

/// Size of a disk in bytes.
const SIZE: u64 = 64 << 20;

/// Gives the engine what it makes disks from, which it looks for when it starts.
fn with_disks(containerd: &Containerd<'_>) -> Result<()> {
    if !Path::new("/dev/loop-control").exists() {
        return Err(Skip("the snapshotter unpacks images over loop devices".into()).into());
    }
    let folder = containerd.host.new_folder("disks")?;
    let scratch = folder.join("scratch");
    File::create(&scratch)?.set_len(SIZE)?;
    let make = containerd.host.command("mkfs.ext4").arg("-q").arg(&scratch);
    make.run()?.ok()?;
    containerd.reconfigure(&format!(
        "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nfs_type = \"ext4\"\n\
         root_path = \"{}\"\nscratch_file = \"{}\"\n",
        folder.join("root").display(),
        scratch.display()
    ))
}

/// The image of a container's disk.
fn image(containerd: &Containerd<'_>, id: &str) -> Result<PathBuf> {
    let ctr = containerd.ctr();
    let mounts = ctr.does(["snapshots", SNAPSHOTTER, "mounts", "/nowhere", id])?;
    let text = mounts.text();
    let mut words = text.split_whitespace();
    let path = words.find(|word| word.starts_with('/'));
    Ok(path.context("a file that is mounted")?.into())
}

/// What a container has written is there when it runs again, and all of it is
/// in the file once the task has been deleted.
fn kept_on_disk(containerd: &Containerd<'_>) -> Result<()> {
    with_disks(containerd)?;
    let (host, ctr) = (containerd.host, containerd.ctr());
    let id = ctr.run_detached(&[SNAPSHOTTER], &["sleep", "1000"])?;
    let exec = |script: &str| {
        Ok::<_, anyhow::Error>(
            ctr.exec(&id, &[], &["sh", "-c", script])
                .run()?
                .ok()?
                .text(),
        )
    };
    let look =
        "grep ' / ' /proc/mounts | cut -d' ' -f 3; df -k / | awk 'END { print ($2 > 50000) }'";
    ensure!(exec(look)? == "ext4\n1");
    exec("echo kept > /mark; dd if=/dev/urandom of=/big bs=1M count=20 2> /dev/null")?;
    let image = image(containerd, &id)?;
    let path = image.to_string_lossy();
    if host.runtime.is_vm() {
        let loops = host.command("losetup").args(["--associated", &path]);
        ensure!(
            loops.run()?.ok()?.text().is_empty(),
            "the host has it mounted"
        );
    }
    ctr.does(["tasks", "kill", "--signal=SIGKILL", &id])?;
    until_true("its end", SOON, || {
        Ok(ctr.status(&id)?.as_deref() == Some("STOPPED"))
    })?;
    // The client reports how it ended.
    ctr.command(["tasks", "delete", &id]).run()?;
    ensure!(ctr.status(&id)?.is_none());
    let check = host.command("e2fsck").args(["-fn", &path]);
    check.run()?.ok()?;
    let header = host.command("dumpe2fs").args(["-h", &path]).run()?.ok()?;
    ensure!(!header.text().contains("needs_recovery"), "{header}");
    let read = host.command("debugfs").args(["-R", "cat /mark", &path]);
    contains(&read.run()?.ok()?.text(), "kept")?;

    ctr.does(["tasks", "start", "--detach", "--null-io", &id])?;
    ensure!(exec("cat /mark; du -k /big | cut -f 1")? == "kept\n20480");
    ctr.remove(&id)
}

/// A disk that cannot be written to.
fn read_only_disk(containerd: &Containerd<'_>) -> Result<()> {
    with_disks(containerd)?;
    let script = "grep -c ' / ext4 ro' /proc/mounts; touch /x 2>&1 | grep -c Read-only";
    let run = containerd
        .ctr()
        .run(&["--rm", SNAPSHOTTER, "--read-only"], &["sh", "-c", script]);
    let run = run.run()?.ok()?;
    ensure!(run.text() == "1\n1", "{run}");
    Ok(())
}
