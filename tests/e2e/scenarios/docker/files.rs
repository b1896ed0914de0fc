//! Files that come into a container and go out of it.

use std::fs;

use anyhow::{Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::{BUSYBOX, Docker};

use super::{Body, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![copies, volumes]
}

/// `cp` both ways with a running and a stopped container, `diff`, `commit`.
fn copies(docker: &Docker<'_>) -> Result<()> {
    let folder = docker.host.new_folder("files")?;
    let here = |name: &str| folder.join(name).to_string_lossy().into_owned();
    fs::write(here("file"), "there and back\n")?;
    let id = docker.run_detached([BUSYBOX, "sleep", "1000"])?;
    let inside = |path: &str| format!("{id}:{path}");
    docker.does(["cp", &here("file"), &inside("/tmp/file")])?;
    docker.does(["exec", &id, "sh", "-c", "cat /tmp/file /tmp/file >/back"])?;
    docker.does(["cp", &inside("/back"), &here("back")])?;
    ensure!(fs::read_to_string(here("back"))? == "there and back\nthere and back\n");
    let diff = docker.does(["diff", &id])?;
    contains(&diff.text(), "A /back")?;
    docker.does(["stop", "--time=0", &id])?;
    docker.does(["cp", &here("file"), &inside("/etc/later")])?;
    docker.does(["cp", &inside("/tmp"), &here("tree")])?;
    ensure!(fs::read_to_string(here("tree/file"))? == "there and back\n");
    docker.does(["start", &id])?;
    docker.does(["exec", &id, "grep", "there", "/etc/later"])?;
    let change = "CMD [\"cat\", \"/back\", \"/etc/later\"]";
    docker.does(["commit", "--change", change, &id, "kept"])?;
    docker.remove(&[&id])?;
    let run = docker.run(["--rm", "kept"]).run()?.ok()?;
    ensure!(run.text() == ["there and back"; 3].join("\n"), "{run}");
    Ok(())
}

/// Volumes of the engine, folders of the host and memory.
fn volumes(docker: &Docker<'_>) -> Result<()> {
    let folder = docker.host.new_folder("bound")?;
    fs::write(folder.join("old"), "old\n")?;
    let bound = format!("--volume={}:/bound", folder.display());
    let script = "echo kept >/data/kept; cat /bound/old; echo new >/bound/new";
    let run = docker
        .run(["--volume=data:/data", &bound, "--volume=/hidden"])
        .args(["--name=first", BUSYBOX, "sh", "-c", script])
        .run()?
        .ok()?;
    ensure!(run.text() == "old", "{run}");
    ensure!(fs::read_to_string(folder.join("new"))? == "new\n");
    let from = "--volumes-from=first:ro";
    let memory = "--mount=type=tmpfs,destination=/memory,tmpfs-size=1m";
    let script = "cat /data/kept /bound/new; touch /data/x 2>&1 | grep -c Read-only; \
                  df -k /memory | awk 'END { print $2 }'; touch /memory/x";
    let run = docker
        .run(["--rm", from, memory, BUSYBOX, "sh", "-c", script])
        .run()?
        .ok()?;
    ensure!(run.text() == "kept\nnew\n1\n1024", "{run}");
    docker.does(["rm", "--volumes", "first"])?;
    let left = docker.does(["volume", "ls", "--quiet"])?;
    ensure!(left.text() == "data", "{left}");
    Ok(())
}
