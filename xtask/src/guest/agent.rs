//! The program that is PID 1 of every guest, built for size and without shared libraries.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::{command, workspace};

/// The target is named even though it is the host's own: only then do `RUSTFLAGS` leave
/// procedural macros alone, which cannot be linked statically.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent and returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    let root = workspace::root();
    command::run(
        Command::new(env!("CARGO"))
            .current_dir(root)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .args(["build", "--quiet", "--package", "casemate-agent"])
            .args(["--profile", "guest", "--target", TARGET]),
    )?;
    let agent = target_folder().join(TARGET).join("guest/casemate-agent");
    let headers = command::output(Command::new("readelf").arg("--program-headers").arg(&agent))?;
    ensure!(
        !headers.contains("INTERP"),
        "{} is not static: the initrd has no dynamic linker",
        agent.display()
    );
    Ok(agent)
}

fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace::root().join("target"), PathBuf::from)
}
