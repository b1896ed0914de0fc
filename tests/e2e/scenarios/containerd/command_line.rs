//! The shim's own command line, as engines and people call it.

use anyhow::{Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::expect::{contains, one_clear_line};

use super::{Body, bodies};

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![version, info]
}

pub(super) fn only_vm() -> (&'static str, Body, &'static str) {
    let why = "runc's shim takes what it does not know for a call to serve";
    ("wrong_calls", wrong_calls, why)
}

fn version(containerd: &Containerd<'_>) -> Result<()> {
    let told = containerd
        .host
        .command(containerd.shim())
        .arg("-v")
        .run()?
        .ok()?;
    let name = format!("containerd-shim-{}-v2", containerd.handler());
    contains(&told.text(), &name)?;
    contains(&told.text(), "ersion")
}

/// A message for engines, which starts with the runtime's name: field 1,
/// `RuntimeInfo.name`.
fn info(containerd: &Containerd<'_>) -> Result<()> {
    let told = containerd
        .host
        .command(containerd.shim())
        .arg("-info")
        .run()?
        .ok()?;
    let name = containerd.runtime();
    let expected = [&[0x0a, name.len() as u8], name.as_bytes()].concat();
    ensure!(told.stdout.starts_with(&expected), "{told}");
    Ok(())
}

fn wrong_calls(containerd: &Containerd<'_>) -> Result<()> {
    let socket = containerd.socket().to_string_lossy().into_owned();
    let calls: [(&[&str], &str); 5] = [
        (&[], "start"),
        (&["start"], "-namespace"),
        (
            &["-namespace", "default", "-address", &socket, "start"],
            "-id",
        ),
        (
            &[
                "-namespace",
                "default",
                "-address",
                &socket,
                "-id",
                "x",
                "dance",
            ],
            "dance",
        ),
        (&["-no-such-flag", "start"], "no-such-flag"),
    ];
    for (words, complaint) in calls {
        let call = containerd
            .host
            .command(containerd.shim())
            .args(words)
            .run()?;
        ensure!(call.exit.shell() != 0 && call.text().is_empty(), "{call}");
        contains(&one_clear_line(&call)?, complaint)?;
    }
    let ids = ["../x", "", "a/b"];
    for id in ids {
        let words = [
            "-namespace",
            "default",
            "-address",
            &socket,
            "-id",
            id,
            "start",
        ];
        let call = containerd
            .host
            .command(containerd.shim())
            .args(words)
            .run()?;
        ensure!(call.exit.shell() != 0, "{call}");
        one_clear_line(&call)?;
    }
    Ok(())
}
