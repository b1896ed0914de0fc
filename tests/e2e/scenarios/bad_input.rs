//! Bad input: one clear line, the right exit code, and nothing left.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use casemate_e2e::container::create_command;
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::{Bundle, Host, Scenario, isolation};
use serde_json::{Value, json};

/// A configuration that must be refused, and a word of the reason.
type Refused = (&'static str, fn(&mut Value), &'static str);

const CONFIGURATIONS: [Refused; 15] = [
    (
        "root_not_there",
        |s| s["root"]["path"] = json!("nowhere"),
        "nowhere",
    ),
    ("no_root", |s| s["root"] = Value::Null, "root"),
    (
        "no_process_arguments",
        |s| s["process"]["args"] = json!([]),
        "args",
    ),
    ("no_process", |s| s["process"] = Value::Null, "process"),
    (
        "wrong_type",
        |s| s["process"]["args"] = json!("true"),
        "string",
    ),
    (
        "relative_folder",
        |s| s["process"]["cwd"] = json!("work"),
        "absolute",
    ),
    (
        "unknown_namespace",
        |s| s["linux"]["namespaces"][0]["type"] = json!("chronos"),
        "chronos",
    ),
    ("duplicate_namespace", duplicate_namespace, "ipc"),
    (
        "namespace_not_there",
        |s| s["linux"]["namespaces"][1]["path"] = json!("/no/such/ns"),
        "/no/such/ns",
    ),
    (
        "unknown_limit",
        |s| s["process"]["rlimits"][0]["type"] = json!("RLIMIT_HOPE"),
        "RLIMIT_HOPE",
    ),
    (
        "unknown_seccomp_action",
        |s| s["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_MAYBE"}),
        "SCMP_ACT_MAYBE",
    ),
    (
        "mount_source_not_there",
        add_mount_of_nothing,
        "/no/such/source",
    ),
    (
        "failing_create_hook",
        |s| s["hooks"]["createRuntime"] = failing_hook(),
        "hook",
    ),
    (
        "failing_prestart_hook",
        |s| s["hooks"]["prestart"] = failing_hook(),
        "hook",
    ),
    (
        "missing_hook",
        |s| s["hooks"]["createRuntime"] = json!([{"path": "/no/such/hook"}]),
        "/no/such/hook",
    ),
];

fn add_mount_of_nothing(spec: &mut Value) {
    let mount = json!({"destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["rbind"]});
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(mount);
    }
}

fn failing_hook() -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo the moat is dry >&2; exit 3"]}])
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all: Vec<Scenario> = CONFIGURATIONS
        .into_iter()
        .map(|(name, change, reason)| {
            Scenario::new(name, move |host| {
                refused(host, &Bundle::new(host, &["true"])?.edit(change)?, reason)
            })
        })
        .collect();
    all.extend(casemate_e2e::scenarios![
        broken_json,
        no_configuration,
        no_bundle,
        program_not_there,
        program_not_executable,
        full_disk,
    ]);
    all.extend(OF_THE_HOST.map(|(name, change, kind)| {
        Scenario::new(name, move |host| {
            refused(host, &Bundle::new(host, &["true"])?.edit(change)?, kind)
        })
        .only_vm("runc shares the namespaces of the host if it is asked to")
    }));
    all.extend(SETTINGS.map(|(name, setting, reason)| {
        Scenario::new(name, move |host| badly_set(host, setting, reason))
            .only_vm("runc starts no virtual machine and reads no configuration")
    }));
    all
}

/// `create` refuses the bundle and says why.
fn refused(host: &Host, bundle: &Bundle, reason: &str) -> Result<()> {
    let id = host.new_id();
    let create = create_command(host, bundle, &id).run()?.exits(1)?;
    contains(&one_clear_line(&create)?, reason)?;
    ensure!(create.stdout.is_empty(), "{create}");
    gone(host, &id)
}

/// Nothing is known of the container, and a client may still clean up.
fn gone(host: &Host, id: &str) -> Result<()> {
    host.oci(&["state", id]).run()?.exits(1)?;
    host.oci(&["delete", "--force", id]).run()?.ok()?;
    Ok(())
}

fn broken_json(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["true"])?;
    fs::write(
        bundle.dir.join("config.json"),
        "{\"ociVersion\": \"1.0.2\",",
    )?;
    refused(host, &bundle, "")
}

fn no_configuration(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["true"])?;
    fs::remove_file(bundle.dir.join("config.json"))?;
    refused(host, &bundle, "config.json")
}

fn no_bundle(host: &Host) -> Result<()> {
    let create = host
        .oci(&["create", "--bundle", "/no/such/bundle", "x"])
        .run()?
        .exits(1)?;
    contains(&one_clear_line(&create)?, "/no/such/bundle")
}

/// Clients look for "no such file or directory" or "executable file not found".
fn program_not_there(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["no-such-program"])?;
    let id = host.new_id();
    let run = host.oci(&["run", "--bundle", bundle.path(), &id]).run()?;
    ensure!(run.exit.shell() != 0, "{run}");
    let line = one_clear_line(&run)?;
    contains(&line, "no-such-program")?;
    let known = ["executable file not found", "no such file or directory"];
    ensure!(
        known
            .iter()
            .any(|words| line.to_lowercase().contains(words)),
        "{line}"
    );
    gone(host, &id)
}

fn program_not_executable(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["/etc/passwd"])?;
    let id = host.new_id();
    let run = host.oci(&["run", "--bundle", bundle.path(), &id]).run()?;
    ensure!(run.exit.shell() != 0, "{run}");
    contains(&one_clear_line(&run)?.to_lowercase(), "permission denied")?;
    gone(host, &id)
}

/// The disk that holds the state is full.
fn full_disk(host: &Host) -> Result<()> {
    let root = host.new_folder("full")?;
    isolation::small_disk(&root, 16 << 10)?;
    fill(&root.join("ballast"))?;
    let bundle = Bundle::new(host, &["true"])?;
    let root_text = root.to_string_lossy().into_owned();
    let create = host
        .oci(&[
            "--root",
            &root_text,
            "create",
            "--bundle",
            bundle.path(),
            "x",
        ])
        .run()?;
    ensure!(create.exit.shell() == 1, "{create}");
    let line = one_clear_line(&create)?;
    // runc 1.1.5 loses the reason and prints a formatting error in its place.
    ensure!(
        !host.runtime.is_vm() || line.to_lowercase().contains("no space left"),
        "{line}"
    );
    host.oci(&["--root", &root_text, "delete", "--force", "x"])
        .run()?
        .ok()?;
    let left: Vec<_> = fs::read_dir(&root)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    ensure!(left == ["ballast"], "{left:?}");
    nix::mount::umount(&root).context("take the small disk away")
}

fn fill(file: &Path) -> Result<()> {
    // The write that finds no more space is the one that is wanted.
    let wrote = fs::write(file, vec![0; 1 << 20]);
    ensure!(wrote.is_err(), "the small disk is not small");
    Ok(())
}

/// A namespace that the container is to share with the host, which a virtual
/// machine cannot do: by its absence, or by its path.
const OF_THE_HOST: [Refused; 4] = [
    (
        "processes_of_the_host",
        |s| without_namespace(s, "pid"),
        "pid",
    ),
    ("ipc_of_the_host", |s| without_namespace(s, "ipc"), "ipc"),
    (
        "network_of_the_host",
        |s| without_namespace(s, "network"),
        "network",
    ),
    (
        "network_of_the_host_by_path",
        |s| s["linux"]["namespaces"][1]["path"] = own_network(),
        "network",
    ),
];

/// The path of the host's network namespace.
fn own_network() -> Value {
    json!(format!("/proc/{}/ns/net", std::process::id()))
}

fn duplicate_namespace(spec: &mut Value) {
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "ipc"}));
    }
}

fn without_namespace(spec: &mut Value, kind: &str) {
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != kind);
    }
}

/// A setting with which no sandbox can start, and a word of the reason.
const SETTINGS: [(&str, &str, &str); 7] = [
    (
        "kernel_not_there",
        "guest.kernel = \"/no/such/kernel\"",
        "/no/such/kernel",
    ),
    (
        "kernel_is_none",
        "guest.kernel = \"/etc/passwd\"",
        "/etc/passwd",
    ),
    (
        "initrd_not_there",
        "guest.initrd = \"/no/such/initrd\"",
        "/no/such/initrd",
    ),
    (
        "qemu_not_there",
        "qemu.path = \"/no/such/qemu\"",
        "/no/such/qemu",
    ),
    ("qemu_fails", "qemu.path = \"/bin/false\"", "/bin/false"),
    (
        "unknown_setting",
        "guest.kernal = \"/boot/vmlinux\"",
        "guest.kernel",
    ),
    (
        "agent_never_answers",
        "guest.kernel_parameters = \"rdinit=/no/init\"\nvmm.boot_timeout_s = 8",
        "ended while it started",
    ),
];

fn badly_set(host: &Host, setting: &str, reason: &str) -> Result<()> {
    let file = host.dir.join("config.toml");
    fs::write(&file, format!("{setting}\n"))?;
    let bundle = Bundle::new(host, &["true"])?;
    let id = host.new_id();
    let create = host.command(&host.runtime.path).arg("--config").arg(&file);
    let create = create
        .args(["create", "--bundle", bundle.path(), &id])
        .run()?
        .exits(1)?;
    let line = one_clear_line(&create)?;
    let errors = create.errors();
    ensure!(
        errors.contains(reason),
        "{reason} was expected in: {line}\n{create}"
    );
    gone(host, &id)
}
