//! Hooks that the administrator gives to podman.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Host, Podman, Scenario, scenarios};

use super::{SOON, remove};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![hooks_of_the_client, hook_that_fails]
}

/// A folder for `--hooks-dir`: a hook for each stage, which writes what it is
/// given into a file and then runs `script`.
fn hooks(host: &Host, stages: &[&str], script: &str) -> Result<PathBuf> {
    let folder = host.new_folder("hooks")?;
    let program = folder.join("hook.sh");
    let text = format!(
        "#!/bin/sh\ncd {}\ncat >$1.json; echo $1 >>order; readlink /proc/$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' $1.json)/ns/net >$1.net\n{script}\n",
        folder.display()
    );
    fs::write(&program, text)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    for stage in stages {
        let hook = serde_json::json!({
            "version": "1.0.0", "when": {"always": true}, "stages": [stage],
            "hook": {"path": program, "args": ["hook.sh", stage]},
        });
        fs::write(folder.join(format!("{stage}.json")), hook.to_string())?;
    }
    Ok(folder)
}

/// Hooks that the administrator has given to podman run on the host, in their
/// order, and are told which container it is.
fn hooks_of_the_client(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let stages = ["prestart", "createRuntime", "poststart", "poststop"];
    let given = hooks(host, &stages, "")?;
    // The configuration of a stage has the name of its state.
    let folder = host.new_folder("configured")?;
    for stage in stages {
        fs::rename(
            given.join(format!("{stage}.json")),
            folder.join(format!("{stage}.json")),
        )?;
    }
    let directory = format!("--hooks-dir={}", folder.display());
    let parent = format!("--cgroup-parent=/{}", host.cgroup);
    let flags = [
        &directory,
        "run",
        "--detach",
        "--network=none",
        &parent,
        BUSYBOX,
        "sleep",
        "1000",
    ];
    let id = podman.command(flags)?.run()?.ok()?.text();
    let order = || fs::read_to_string(given.join("order")).unwrap_or_default();
    until_true("poststart", SOON, || Ok(order().contains("poststart")))?;
    ensure!(
        order() == "prestart\ncreateRuntime\npoststart\n",
        "{}",
        order()
    );
    let pid: i32 = podman.inspect(&id, "{{.State.Pid}}")?.parse()?;
    let network = fs::read_link(format!("/proc/{pid}/ns/net"))?;
    for stage in &stages[..3] {
        let state: serde_json::Value =
            serde_json::from_slice(&fs::read(given.join(format!("{stage}.json")))?)?;
        ensure!(
            state["id"] == id.as_str() && state["pid"] == pid,
            "{stage}: {state}"
        );
        ensure!(
            state["bundle"]
                .as_str()
                .is_some_and(|path| path.contains(&id)),
            "{stage}: {state}"
        );
        let seen = fs::read_to_string(given.join(format!("{stage}.net")))?;
        ensure!(seen.trim() == network.to_string_lossy(), "{stage}: {seen}");
    }
    remove(&podman, &id)?;
    until_true("poststop", SOON, || Ok(order().ends_with("poststop\n")))?;
    Ok(())
}

/// A hook that fails before the start leaves no container.
fn hook_that_fails(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let folder = hooks(host, &["prestart"], "echo the moat is dry >&2; exit 3")?;
    let directory = format!("--hooks-dir={}", folder.display());
    let parent = format!("--cgroup-parent=/{}", host.cgroup);
    let flags = [
        &directory,
        "run",
        "--rm",
        "--network=none",
        &parent,
        BUSYBOX,
        "echo",
        "ran",
    ];
    let run = podman.command(flags)?.run()?;
    ensure!(run.exit.shell() == 126 && run.stdout.is_empty(), "{run}");
    contains(&run.errors(), "hook")?;
    contains(&run.errors(), "the moat is dry")
}
