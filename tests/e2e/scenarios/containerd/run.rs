//! Containers that run and end.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::expect::contains;
use casemate_e2e::images;
use casemate_e2e::wait::until_true;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![run_and_its_ends]
}

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![flags, root_file_systems]
}

/// Input, output, errors and how a program ended.
fn run_and_its_ends(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let script = "cat; echo error >&2; exit 7";
    // The client passes the end of its input on only once the task is made.
    let mut run = ctr
        .run(&["--rm"], &["sh", "-c", script])
        .input_by_hand()
        .start()?;
    let mut input = run.stdin.take().context("an input")?;
    input.write_all(b"hello\n")?;
    until_true("the answer", SOON, || Ok(run.written() == b"hello\n"))?;
    drop(input);
    let run = run.finish()?.exits(7)?;
    ensure!(run.text() == "hello" && run.errors() == "error", "{run}");
    let killed = "sleep 1000 & kill -9 $!; wait $!";
    for (words, code) in [(&["true"][..], 0), (&["sh", "-c", killed], 137)] {
        ctr.run(&["--rm"], words).run()?.exits(code)?;
    }
    let id = containerd.host.new_id();
    let missing = ctr.run_as(&id, &["--rm"], &["no-such-program"]).run()?;
    ensure!(missing.exit.shell() != 0, "{missing}");
    contains(&missing.errors(), "executable file not found in $PATH")?;
    super::forget(&ctr, &id)
}

/// The flags that make the container what it is.
fn flags(containerd: &Containerd<'_>) -> Result<()> {
    let data = containerd.host.new_folder("data")?;
    fs::write(data.join("file"), "from the host\n")?;
    let folder = data.to_string_lossy();
    let bound = format!("type=bind,src={folder},dst=/data,options=rbind:ro");
    let written = format!("type=bind,src={folder},dst=/out,options=rbind:rw");
    let memory = "type=tmpfs,src=tmpfs,dst=/memory,options=size=1m";
    let script = "id -u; id -g; pwd; echo $A; hostname; cat /data/file; touch /data/x 2>&1 | grep -c Read-only; \
                  df -k /memory | awk 'END { print $2 }'; echo out >/out/new; touch /x 2>&1 | grep -c Read-only";
    let run = containerd.ctr().run(
        &[
            "--rm",
            "--user=33:100",
            "--cwd=/tmp",
            "--env=A=b",
            "--hostname=tower",
            "--read-only",
            "--mount",
            &bound,
            "--mount",
            &written,
            "--mount",
            memory,
        ],
        &["sh", "-c", script],
    );
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let run = run.run()?.ok()?;
    let expected = "33\n100\n/tmp\nb\ntower\nfrom the host\n1\n1024\n1";
    ensure!(run.text() == expected, "{run}");
    ensure!(fs::read_to_string(data.join("new"))? == "out\n");
    Ok(())
}

/// A folder of the host, and what snapshotters give instead of one.
fn root_file_systems(containerd: &Containerd<'_>) -> Result<()> {
    let (host, ctr) = (containerd.host, containerd.ctr());
    let folder = host.new_folder("own")?.join("rootfs");
    images::copy_rootfs(host, &folder)?;
    let id = host.new_id();
    let program = ["/bin/sh", "-c", "echo new >/new; echo written"];
    let path = folder.to_string_lossy();
    let run = ctr.run_from(&path, &id, &["--rm", "--rootfs"], &program);
    ensure!(run.run()?.ok()?.text() == "written");
    ensure!(fs::read_to_string(folder.join("new"))? == "new\n");
    for snapshotter in ["overlayfs", "native"] {
        let flag = format!("--snapshotter={snapshotter}");
        let run = ctr.run(&["--rm", &flag], &program).run()?.ok()?;
        ensure!(run.text() == "written", "{run}");
        let fresh = ctr.run(&["--rm", &flag], &["/bin/test", "-e", "/new"]);
        fresh.run()?.exits(1)?;
    }
    Ok(())
}
