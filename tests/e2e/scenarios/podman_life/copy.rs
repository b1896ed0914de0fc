//! Files that go into a container and out of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::podman::volume;
use casemate_e2e::{Host, Podman, Scenario, scenarios};

use super::{background, remove, says};

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![copy_while_it_runs, copy_into_a_volume, copy_when_stopped];
    all.push(
        Scenario::new("copy_where_only_the_guest_is", copy_where_only_the_guest_is)
            .only_vm("with runc every mount of a container is the host's, too"),
    );
    all
}

/// A folder with a file that can be recognized, and a program.
fn luggage(host: &Host) -> Result<PathBuf> {
    let folder = host.new_folder("luggage")?;
    fs::create_dir(folder.join("inner"))?;
    fs::write(folder.join("inner/letter"), "from the host\n")?;
    fs::write(folder.join("program"), "#!/bin/sh\necho it runs\n")?;
    fs::set_permissions(folder.join("program"), fs::Permissions::from_mode(0o750))?;
    Ok(folder)
}

fn copy(podman: &Podman<'_>, from: &str, to: &str) -> Result<()> {
    podman.command(["cp", from, to])?.run()?.ok()?;
    Ok(())
}

fn copy_while_it_runs(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = background(
        &podman,
        &[],
        "mkdir -p /made/here; echo inside >/made/here/word; exec sleep 1000",
    )?;
    let folder = luggage(host)?;
    copy(&podman, &folder.to_string_lossy(), &format!("{id}:/taken"))?;
    let script = "cat /taken/inner/letter; /taken/program; stat -c '%a %u:%g' /taken/program";
    let exec = podman
        .command(["exec", &id, "sh", "-c", script])?
        .run()?
        .ok()?;
    ensure!(exec.text() == "from the host\nit runs\n750 0:0", "{exec}");
    // Into a folder that is there, under another name, through a link.
    let letter = folder.join("inner/letter").to_string_lossy().into_owned();
    podman
        .command(["exec", &id, "ln", "-s", "/made", "/link"])?
        .run()?
        .ok()?;
    copy(&podman, &letter, &format!("{id}:/link/here/"))?;
    copy(&podman, &letter, &format!("{id}:/tmp/copy"))?;
    let exec = podman
        .command(["exec", &id, "cat", "/made/here/letter", "/tmp/copy"])?
        .run()?
        .ok()?;
    ensure!(exec.text() == "from the host\nfrom the host", "{exec}");
    let back = host.new_folder("back")?;
    copy(&podman, &format!("{id}:/made"), &back.to_string_lossy())?;
    ensure!(fs::read_to_string(back.join("made/here/word"))? == "inside\n");
    ensure!(fs::read_to_string(back.join("made/here/letter"))? == "from the host\n");
    let missing = podman
        .command(["cp", &format!("{id}:/nowhere"), &back.to_string_lossy()])?
        .run()?;
    ensure!(missing.exit.shell() == 125, "{missing}");
    remove(&podman, &id)
}

/// What is mounted in the container is there for copies, too.
fn copy_into_a_volume(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let data = host.new_folder("data")?;
    let flags = [volume(&data, "/srv/data"), volume(&data, "/fixed:ro")];
    let id = background(&podman, &[&flags[0], &flags[1]], "exec sleep 1000")?;
    let letter = luggage(host)?
        .join("inner/letter")
        .to_string_lossy()
        .into_owned();
    copy(&podman, &letter, &format!("{id}:/srv/data/arrived"))?;
    ensure!(fs::read_to_string(data.join("arrived"))? == "from the host\n");
    let exec = podman
        .command(["exec", &id, "cat", "/srv/data/arrived"])?
        .run()?
        .ok()?;
    ensure!(exec.text() == "from the host", "{exec}");
    let refused = podman
        .command(["cp", &letter, &format!("{id}:/fixed/x")])?
        .run()?;
    ensure!(
        refused.exit.shell() != 0 && !data.join("x").exists(),
        "{refused}"
    );
    let back = host.dir.join("back");
    copy(
        &podman,
        &format!("{id}:/fixed/arrived"),
        &back.to_string_lossy(),
    )?;
    ensure!(fs::read_to_string(back)? == "from the host\n");
    remove(&podman, &id)
}

/// What only the guest has cannot be copied to, and is not silently missed.
fn copy_where_only_the_guest_is(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script = "echo inside >/scratch/word; echo ready; exec sleep 1000";
    let id = background(&podman, &["--tmpfs=/scratch"], script)?;
    says(&podman, &id, "ready")?;
    let letter = luggage(host)?.join("inner/letter");
    let letter = letter.to_string_lossy();
    let refused = podman.command(["cp", &letter, &format!("{id}:/scratch/x")])?;
    contains(
        &refused.run()?.exits(125)?.errors(),
        "read-only file system",
    )?;
    let back = host.dir.join("back").to_string_lossy().into_owned();
    let missing = podman.command(["cp", &format!("{id}:/scratch/word"), &back])?;
    missing.run()?.exits(125)?;
    remove(&podman, &id)
}

fn copy_when_stopped(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = background(
        &podman,
        &[],
        "cat /taken/inner/letter; echo inside >/word; exit 0",
    )?;
    podman.command(["wait", &id])?.run()?.ok()?;
    copy(
        &podman,
        &luggage(host)?.to_string_lossy(),
        &format!("{id}:/taken"),
    )?;
    let back = host.dir.join("back");
    copy(&podman, &format!("{id}:/word"), &back.to_string_lossy())?;
    ensure!(fs::read_to_string(back)? == "inside\n");
    let start = podman.command(["start", "--attach", &id])?.run()?.ok()?;
    ensure!(start.text() == "from the host", "{start}");
    remove(&podman, &id)
}
