//! What a client reads from the runtime itself: version, features, errors.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Container, Host, Scenario, scenarios};
use serde_json::{Value, json};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        version,
        features,
        spec,
        log_of_errors,
        usage,
        hooks,
        start_container_hooks
    ]
}

/// Podman and containerd take the first line apart: "name version x.y.z".
fn version(host: &Host) -> Result<()> {
    let told = host.oci(&["--version"]).run()?.ok()?.text();
    let first = told.lines().next().unwrap_or_default();
    let number = first
        .strip_prefix(&format!("{} version ", host.runtime.kind))
        .context(told.clone())?;
    let digits = number.chars().next().is_some_and(|c| c.is_ascii_digit());
    ensure!(digits && number.matches('.').count() >= 2, "{told}");
    contains(&told, "spec: 1.")
}

/// features.md of the OCI runtime specification 1.1.
fn features(host: &Host) -> Result<()> {
    let told = host.oci(&["features"]).run()?.ok()?;
    let told: Value = serde_json::from_slice(&told.stdout)?;
    for key in ["ociVersionMin", "ociVersionMax"] {
        ensure!(
            told[key].as_str().is_some_and(|v| v.starts_with("1.")),
            "{key}: {told}"
        );
    }
    let has =
        |list: &Value, word: &str| list.as_array().is_some_and(|l| l.iter().any(|w| w == word));
    for hook in ["prestart", "createRuntime", "poststart", "poststop"] {
        ensure!(has(&told["hooks"], hook), "hook {hook}: {told}");
    }
    for namespace in ["pid", "network", "mount", "ipc", "uts"] {
        ensure!(
            has(&told["linux"]["namespaces"], namespace),
            "{namespace}: {told}"
        );
    }
    ensure!(has(&told["linux"]["capabilities"], "CAP_CHOWN"), "{told}");
    ensure!(told["linux"]["seccomp"]["enabled"] == true, "{told}");
    Ok(())
}

/// `spec` writes a configuration that runs, and overwrites none.
fn spec(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["true"])?;
    let file = bundle.dir.join("config.json");
    fs::remove_file(&file)?;
    host.oci(&["spec", "--bundle", bundle.path()]).run()?.ok()?;
    let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let again = host.oci(&["spec"]).folder(&bundle.dir).run()?.exits(1)?;
    contains(&one_clear_line(&again)?, "exist")?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["echo", "as specified"]);
    spec["linux"]["cgroupsPath"] = json!(bundle.cgroup());
    fs::write(&file, spec.to_string())?;
    ensure!(Container::run(host, &bundle)?.end(0)? == "as specified\n");
    Ok(())
}

/// containerd's shim reports the last error of the log.
fn log_of_errors(host: &Host) -> Result<()> {
    let log = host.dir.join("log.json");
    let path = log.to_string_lossy().into_owned();
    for format in [&["--log-format", "json"][..], &["--log-format=json"]] {
        let arguments = [&["--log", path.as_str()], format, &["state", "nobody"]].concat();
        host.oci(&arguments).run()?.exits(1)?;
    }
    let text = fs::read_to_string(&log)?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.len() == 2, "two errors were expected\n{text}");
    for line in lines {
        let entry: Value = serde_json::from_str(line)?;
        ensure!(
            entry["level"] == "error" && entry["time"].is_string(),
            "{line}"
        );
        contains(entry["msg"].as_str().unwrap_or_default(), "does not exist")?;
    }
    let text_log = host.dir.join("log.txt").to_string_lossy().into_owned();
    host.oci(&["--log", &text_log, "state", "nobody"])
        .run()?
        .exits(1)?;
    contains(&fs::read_to_string(&text_log)?, "level=error")
}

/// A wrong command line is refused, not guessed at.
fn usage(host: &Host) -> Result<()> {
    let wrong: [&[&str]; 5] = [
        &["create"],
        &["state", "a", "b"],
        &["state", "--sideways", "a"],
        &["--log-format", "poem", "state", "a"],
        &["list", "--format", "poem"],
    ];
    for arguments in wrong {
        let refused = host.oci(arguments).run()?;
        ensure!(refused.exit.shell() != 0, "{refused}");
        ensure!(
            !refused.stderr.is_empty() || !refused.stdout.is_empty(),
            "{refused}"
        );
    }
    Ok(())
}

/// Hooks of the host run when they should and get the container's state:
/// config.md, "POSIX-platform Hooks".
fn hooks(host: &Host) -> Result<()> {
    let told = host.dir.join("told");
    let hook = |name: &str| {
        let script = format!(
            "echo \"{name} $(cat | tr -d '\\n') $COLOUR $0\" >>{file}; \
             [ {name} = poststop ] || readlink /proc/$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' {file} | tail -n 1)/ns/net >>{file}",
            file = told.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script, "zero"], "env": ["COLOUR=grey", "PATH=/usr/bin:/bin"]}])
    };
    let bundle = Bundle::new(host, &["true"])?.edit(|spec| {
        for name in ["prestart", "createRuntime", "poststart", "poststop"] {
            spec["hooks"][name] = hook(name);
        }
    })?;
    let container = Container::create(host, &bundle)?;
    let before_start = fs::read_to_string(&told)?;
    // What comes after is for `start`, although runc 1.1 runs poststart here.
    ensure!(
        hook_names(&before_start).starts_with(&["prestart", "createRuntime"]),
        "{before_start}"
    );
    container.start()?;
    let id = container.id.clone();
    container.end(0)?;
    let text = fs::read_to_string(&told)?;
    ensure!(
        hook_names(&text) == ["prestart", "createRuntime", "poststart", "poststop"],
        "{text}"
    );
    let own_network = fs::read_link("/proc/self/ns/net")?;
    ensure!(
        !text.contains(&*own_network.to_string_lossy()),
        "a hook was given the host's network\n{text}"
    );
    for line in text.lines().filter(|line| !line.starts_with("net:")) {
        contains(line, &format!("\"{id}\""))?;
        contains(line, "grey zero")?;
    }
    Ok(())
}

/// They run in the container, before its program; one that fails stops it.
fn start_container_hooks(host: &Host) -> Result<()> {
    let hook = |script: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]);
    let bundle = Bundle::new(host, &["cat", "/tmp/told"])?.edit(|spec| {
        spec["hooks"]["startContainer"] = hook("cat >/tmp/told; hostname >>/tmp/told")
    })?;
    let container = Container::run(host, &bundle)?;
    let id = container.id.clone();
    let told = container.end(0)?;
    contains(&told, &format!("\"{id}\""))?;
    contains(&told, "\"created\"")?;

    let bundle = Bundle::new(host, &["true"])?
        .edit(|spec| spec["hooks"]["startContainer"] = hook("echo why >&2; exit 3"))?;
    let container = Container::create(host, &bundle)?;
    let start = host.oci(&["start", &container.id]).run()?;
    // runc does not wait for its hooks.
    if host.runtime.is_vm() {
        contains(&one_clear_line(&start.exits(1)?)?, "why")?;
    }
    until_true("the container to stop", Duration::from_secs(10), || {
        Ok(container.status()? == "stopped")
    })?;
    container.delete()
}

fn hook_names(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.starts_with("net:"));
    lines.filter_map(|line| line.split(' ').next()).collect()
}
