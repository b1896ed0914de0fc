//! The runtime's own commands, for the containers of a shim.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::expect::contains;

use super::Body;

pub(super) fn only_vm() -> (&'static str, Body, &'static str) {
    ("own_commands", own_commands, "runc's are not of interest")
}

/// The root of a containerd's namespace is one of the command line as well.
fn own_commands(containerd: &Containerd<'_>) -> Result<()> {
    let ctr = containerd.ctr();
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let root = root()?;
    let root = root.to_str().context("a path in UTF-8")?;
    let call = |words: &[&str]| {
        let words = [&["--root", root], words].concat();
        Ok::<_, anyhow::Error>(containerd.host.oci(&words).run()?.ok()?.text())
    };
    contains(&call(&["list"])?, &id)?;
    contains(&call(&["state", &id])?, "\"running\"")?;
    contains(&call(&["ps", &id])?, "sleep")?;
    let timeline = call(&["timeline", &id])?;
    for part in ["host", "vmm", "agent"] {
        contains(&timeline, part)?;
    }
    ctr.remove(&id)?;
    ensure!(!call(&["list"])?.contains(&id));
    Ok(())
}

/// The only root there is: that of namespace `default`.
fn root() -> Result<PathBuf> {
    let entries = fs::read_dir("/run/casemate")?.flatten();
    let mut roots = entries.map(|entry| entry.path().join("default"));
    let found = roots.find(|path| path.to_string_lossy().contains("/containerd") && path.is_dir());
    found.context("no root of a containerd in /run/casemate")
}
