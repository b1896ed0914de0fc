//! The steps of a build.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::{BUSYBOX, Command, Docker};

use super::{Body, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![builds]
}

/// The older builder makes containers of its steps, BuildKit runs them by itself.
fn builds(docker: &Docker<'_>) -> Result<()> {
    for build_kit in ["0", "1"] {
        let command = prepared(docker)?.env("DOCKER_BUILDKIT", build_kit);
        command.run()?.ok()?;
        let kernel = kernel_of_the_build(docker)?;
        ensure!(
            kernel.contains("casemate") == docker.host.runtime.is_vm(),
            "{build_kit}: {kernel}"
        );
    }
    Ok(())
}

fn prepared<'h>(docker: &Docker<'h>) -> Result<Command<'h>> {
    let folder = docker.host.new_folder("build")?;
    let recipe = format!(
        "FROM {BUSYBOX}\nRUN uname -r >/kernel && ip route | grep -q ^default && echo builder:x:77:77::/:/bin/sh >>/etc/passwd\n\
         USER builder\nRUN id -un >/tmp/name\n"
    );
    fs::write(folder.join("Dockerfile"), recipe)?;
    let path = folder.to_string_lossy().into_owned();
    let build = ["build", "--quiet", "--tag=built", &path];
    Ok(docker.command(build).limit(Duration::from_secs(120)))
}

fn kernel_of_the_build(docker: &Docker<'_>) -> Result<String> {
    let script = "cat /tmp/name /kernel";
    let built = docker
        .run(["--rm", "built", "sh", "-c", script])
        .run()?
        .ok()?;
    let text = built.text();
    let kernel = text.strip_prefix("builder\n").context(text.clone())?;
    Ok(kernel.to_owned())
}
