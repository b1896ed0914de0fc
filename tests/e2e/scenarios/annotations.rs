//! Annotations that change what a sandbox is made with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::container::create_command;
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::{Bundle, Container, Host, Scenario, scenarios};
use serde_json::json;

use crate::pods::join;

/// How long a killed pod may take to end.
const SOON: Duration = Duration::from_secs(10);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let all = scenarios![
        they_size_the_machine,
        a_pod_s_limits_size_its_machine,
        what_is_wrong_is_refused,
        the_configuration_allows,
        kata_s_are_understood,
    ];
    let vm_only = |scenario: Scenario| scenario.only_vm("runc makes no machine");
    all.into_iter().map(vm_only).collect()
}

fn annotated(host: &Host, command: &[&str], annotations: &[(&str, &str)]) -> Result<Bundle> {
    Bundle::new(host, command)?.edit(|spec| {
        for (key, value) in annotations {
            spec["annotations"][key] = json!(value);
        }
    })
}

/// Says how many processors there are, and how much memory.
const LOOK: &[&str] = &[
    "sh",
    "-c",
    "grep -c ^processor /proc/cpuinfo; grep MemTotal: /proc/meminfo",
];

/// Processors, and memory in MiB, that a container with these annotations sees.
fn machine(host: &Host, annotations: &[(&str, &str)]) -> Result<(u32, u64)> {
    told(host, &annotated(host, LOOK, annotations)?)
}

/// The same, as the container of a bundle that runs [`LOOK`] tells it.
fn told(host: &Host, bundle: &Bundle) -> Result<(u32, u64)> {
    let told = Container::run(host, bundle)?.end(0)?;
    let numbers = told.split_whitespace().filter_map(|word| word.parse().ok());
    match numbers.collect::<Vec<u64>>()[..] {
        [processors, kib] => Ok((processors as u32, kib >> 10)),
        _ => anyhow::bail!("{told}"),
    }
}

/// The kernel takes some of the memory before it counts.
fn is_about(found: u64, machine_mib: u64) -> Result<()> {
    let least = machine_mib - 50;
    ensure!(
        (least..=machine_mib).contains(&found),
        "{found} MiB of {machine_mib}"
    );
    Ok(())
}

/// Two, or what the host has.
fn some_processors() -> Result<u32> {
    Ok(std::thread::available_parallelism()?.get().min(2) as u32)
}

fn they_size_the_machine(host: &Host) -> Result<()> {
    let wanted = some_processors()?;
    let (processors, memory) = machine(
        host,
        &[
            ("casemate.io/machine.vcpus", &wanted.to_string()),
            ("casemate.io/machine.memory_mib", "384"),
            ("casemate.io/vmm.min_tier", "emulated"),
            ("org.example/of-another", "left alone"),
        ],
    )?;
    ensure!(processors == wanted, "{processors}");
    is_about(memory, 384)
}

/// As containerd says it: the limits of the container itself are not the pod's.
fn a_pod_s_limits_size_its_machine(host: &Host) -> Result<()> {
    let limits = [
        ("io.kubernetes.cri.container-type", "sandbox"),
        ("io.kubernetes.cri.sandbox-memory", "134217728"),
        ("io.kubernetes.cri.sandbox-cpu-quota", "150000"),
        ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
        ("io.kubernetes.cri.sandbox-cpu-shares", "512"),
    ];
    let pod = Container::run(host, &annotated(host, &["/pause"], &limits)?)?;
    let bundle = Bundle::new(host, LOOK)?;
    let bundle = bundle.edit(|spec| join(spec, pod.pid, &["network", "ipc", "uts"]))?;
    let (processors, memory) = told(host, &bundle)?;
    ensure!(processors == some_processors()?, "{processors}");
    is_about(memory, 256 + 128)?;
    pod.kill("KILL")?.ok()?;
    pod.wait(SOON)?;
    pod.delete()
}

/// Each in one line, and nothing of the container is left.
fn what_is_wrong_is_refused(host: &Host) -> Result<()> {
    for (key, value, reason) in [
        (
            "casemate.io/machine.vcpus",
            "none",
            "expected an integer from 1 to 255",
        ),
        ("casemate.io/machine.vcpus", "255", "this host has"),
        (
            "casemate.io/machine.vcpu",
            "2",
            "did you mean casemate.io/machine.vcpus?",
        ),
        ("casemate.io/guest.initrd", "/etc/shadow", "pod.annotations"),
        (
            "casemate.io/qemu.path",
            "/bin/sh",
            "host's configuration alone",
        ),
        (
            "io.katacontainers.config.hypervisor.kernel_params",
            "quiet",
            "pod.annotations",
        ),
        (
            "io.kubernetes.cri.sandbox-memory",
            "much",
            "is not a number",
        ),
    ] {
        let sandbox = ("io.kubernetes.cri.container-type", "sandbox");
        let bundle = annotated(host, &["true"], &[sandbox, (key, value)])?;
        let id = host.new_id();
        let refused = create_command(host, &bundle, &id).run()?.exits(1)?;
        let line = one_clear_line(&refused)?;
        contains(&line, key.trim_start_matches("casemate.io/"))?;
        contains(&line, value)?;
        contains(&line, reason)?;
        ensure!(host.oci(&["state", &id]).run()?.exit.shell() != 0);
    }
    Ok(())
}

fn the_configuration_allows(host: &Host) -> Result<()> {
    let file = host.dir.join("config.toml");
    let text = "[pod]\nannotations = [\"guest.kernel_parameters=casemate_e2e.*\"]\n";
    std::fs::write(&file, text)?;
    let file = file.to_str().context("a path in UTF-8")?;
    let run = |key: &str, value: &str| {
        let bundle = annotated(host, &["cat", "/proc/cmdline"], &[(key, value)])?;
        let id = host.new_id();
        let words = ["--config", file, "run", "--bundle", bundle.path(), &id];
        host.oci(&words).run()
    };
    let told = run("casemate.io/guest.kernel_parameters", "casemate_e2e.word")?.ok()?;
    contains(&told.text(), "casemate_e2e.word")?;
    for (key, value) in [
        ("casemate.io/guest.kernel_parameters", "panic=0"),
        ("casemate.io/machine.vcpus", "1"),
    ] {
        let refused = run(key, value)?.exits(1)?;
        contains(&one_clear_line(&refused)?, "this host")?;
    }
    Ok(())
}

/// What has a meaning here is followed; for the rest there is a word in the log.
fn kata_s_are_understood(host: &Host) -> Result<()> {
    let key = |name: &str| format!("io.katacontainers.config.hypervisor.{name}");
    let (vcpus, machine) = (key("default_vcpus"), key("machine_type"));
    let processors = some_processors()?.to_string();
    let annotations = [
        (vcpus.as_str(), processors.as_str()),
        (machine.as_str(), "q35"),
    ];
    let bundle = annotated(
        host,
        &["grep", "-c", "^processor", "/proc/cpuinfo"],
        &annotations,
    )?;
    let log = host.dir.join("log.json");
    let log_path = log.to_str().context("a path in UTF-8")?;
    let id = host.new_id();
    let flags = ["--log", log_path, "--log-format", "json"];
    let run = ["run", "--bundle", bundle.path(), &id];
    let told = host.oci(&[&flags[..], &run].concat()).run()?.ok()?;
    ensure!(told.text() == processors, "{told}");
    let log = std::fs::read_to_string(log)?;
    contains(&log, &machine)?;
    contains(&log, "WARN")
}
