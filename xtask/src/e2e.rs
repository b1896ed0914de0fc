//! The end-to-end tests: real clients drive the installed runtime.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{clients, command, workspace};

/// Options of `cargo xtask e2e`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Virtual machines are heavy: so many tests at a time
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// Runs the suite against what `./quickstart` installed.
pub(crate) fn run(options: &Options) -> Result<()> {
    for artifact in [
        "guest/vmlinux",
        "guest/initrd.cpio",
        "images/busybox.tar",
        "images/pause.tar",
        "images/debian.tar",
        "images/applications.tar",
    ] {
        ensure!(
            workspace::root().join("build").join(artifact).exists(),
            "build/{artifact} is not there\nhint: cargo xtask guest && cargo xtask image"
        );
    }
    clients::run()?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(workspace::root())
        .args(["test", "--package", "casemate-e2e"])
        .args(&options.filter)
        .arg("--")
        .arg(format!("--test-threads={}", options.threads));
    command::run(&mut cargo)
}
