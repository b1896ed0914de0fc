//! Limits: what they make of the machine, where they hold on the host, and
//! what is said when one is hit.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::{BUSYBOX, Bundle, Container, Host, Podman, Scenario, cgroups, scenarios};
use serde_json::json;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        limits_on_the_host,
        update_on_the_host,
        a_limit_that_the_kernel_refuses,
        podman_says_out_of_memory,
        podman_says_nothing_of_an_ordinary_end,
        podman_stats,
        scope_without_systemd,
    ];
    all.push(
        Scenario::new("machine_follows_the_limits", machine_follows_the_limits)
            .only_vm("runc makes no machine"),
    );
    all
}

/// The value of an interface file of a container's cgroup on the host, by its
/// names in cgroup v1 and v2.
fn on_the_host(bundle: &Bundle, files: [&str; 2]) -> Result<String> {
    let leaf = bundle.cgroup();
    let root = Path::new(cgroups::ROOT);
    let found = cgroups::find(|path| path.ends_with(leaf.trim_start_matches('/')));
    let file = found
        .iter()
        .flat_map(|folder| files.map(|file| folder.join(file)))
        .find(|file| file.exists());
    let file = file.with_context(|| format!("{files:?} of {leaf} under {}", root.display()))?;
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

fn idle(host: &Host, resources: serde_json::Value) -> Result<Bundle> {
    Bundle::new(host, &["sleep", "1000"])?.edit(|spec| {
        for (key, value) in resources.as_object().into_iter().flatten() {
            spec["linux"]["resources"][key] = value.clone();
        }
    })
}

/// In a scenario's empty /run there is no systemd, whatever the machine has.
fn scope_without_systemd(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["true"])?;
    let bundle = bundle.edit(|spec| spec["linux"]["cgroupsPath"] = "a.slice:keep:tower".into())?;
    let id = host.new_id();
    let create = ["--systemd-cgroup", "create", "--bundle", bundle.path(), &id];
    let refused = host.oci(&create).run()?;
    ensure!(refused.exit.shell() != 0, "{refused}");
    contains(&refused.errors(), "systemd")?;
    if host.runtime.is_vm() {
        one_clear_line(&refused)?;
    }
    ensure!(host.oci(&["state", &id]).run()?.exit.shell() != 0);
    Ok(())
}

fn limits_on_the_host(host: &Host) -> Result<()> {
    let cpu = json!({"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"});
    let bundle = idle(host, json!({"cpu": cpu, "memory": {"limit": 64 << 20}}))?;
    let container = Container::run(host, &bundle)?;
    let quota = on_the_host(&bundle, ["cpu.cfs_quota_us", "cpu.max"])?;
    ensure!(
        matches!(quota.as_str(), "50000" | "50000 100000"),
        "{quota}"
    );
    ensure!(on_the_host(&bundle, ["cpu.shares", "cpu.weight"])? == "512");
    ensure!(on_the_host(&bundle, ["cpuset.cpus", "cpuset.cpus"])? == "0");
    let memory: u64 = on_the_host(&bundle, ["memory.limit_in_bytes", "memory.max"])?.parse()?;
    // A virtual machine needs room beside the container's own.
    ensure!((64 << 20..1 << 30).contains(&memory), "{memory}");
    container.delete_force()
}

fn update_on_the_host(host: &Host) -> Result<()> {
    let bundle = idle(host, json!({}))?;
    let container = Container::run(host, &bundle)?;
    let flags = [
        "update",
        "--cpu-quota",
        "30000",
        "--cpu-period",
        "100000",
        &container.id,
    ];
    host.oci(&flags).run()?.ok()?;
    let quota = on_the_host(&bundle, ["cpu.cfs_quota_us", "cpu.max"])?;
    ensure!(
        matches!(quota.as_str(), "30000" | "30000 100000"),
        "{quota}"
    );
    container.delete_force()
}

/// Nothing is left of a container whose limits cannot be had.
fn a_limit_that_the_kernel_refuses(host: &Host) -> Result<()> {
    let bundle = idle(host, json!({"cpu": {"cpus": "4000"}}))?;
    let refused = Container::create(host, &bundle);
    ensure!(refused.is_err(), "created on a processor that is not there");
    Ok(())
}

fn machine_follows_the_limits(host: &Host) -> Result<()> {
    let limits =
        json!({"cpu": {"quota": 150_000, "period": 100_000}, "memory": {"limit": 512 << 20}});
    let bundle = idle(host, limits)?;
    let container = Container::run(host, &bundle)?;
    let script = "nproc; grep MemTotal /proc/meminfo";
    let seen = host
        .oci(&["exec", &container.id, "sh", "-c", script])
        .run()?
        .ok()?;
    let text = seen.text();
    let mut lines = text.lines();
    let processors = std::thread::available_parallelism()?.get().min(2);
    ensure!(
        lines.next() == Some(processors.to_string().as_str()),
        "{seen}"
    );
    let kib: u64 = text
        .split_whitespace()
        .rev()
        .nth(1)
        .context("MemTotal")?
        .parse()?;
    // 512 for the container and 256 for the guest, less what its kernel takes.
    ensure!((600 << 10..768 << 10).contains(&kib), "{seen}");
    container.delete_force()
}

fn podman_says_out_of_memory(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script = "head -c 200m /dev/zero | tail -c 200m >/dev/null";
    let flags = [
        "--memory=48m",
        "--memory-swap=48m",
        BUSYBOX,
        "sh",
        "-c",
        script,
    ];
    let id = podman.run_detached(flags)?;
    let waited = podman
        .command(["wait", &id])?
        .limit(Duration::from_secs(90))
        .run()?
        .ok()?;
    ensure!(waited.text() == "137", "{waited}");
    // With runc it is conmon who hears of it, and it is late when the container
    // ends at the same moment.
    if host.runtime.is_vm() {
        ensure!(podman.inspect(&id, "{{.State.OOMKilled}}")? == "true");
    }
    podman.command(["rm", &id])?.run()?.ok()?;
    Ok(())
}

fn podman_says_nothing_of_an_ordinary_end(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached(["--memory=48m", BUSYBOX, "sh", "-c", "kill -9 $$"])?;
    podman.command(["wait", &id])?.run()?.ok()?;
    ensure!(podman.inspect(&id, "{{.State.OOMKilled}}")? == "false");
    podman.command(["rm", &id])?.run()?.ok()?;
    Ok(())
}

/// Figures that mean something, and a limit that was asked for.
fn podman_stats(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached(["--memory=64m", BUSYBOX, "sh", "-c", "while :; do :; done"])?;
    let format = "{{.MemUsage}} {{.PIDs}} {{.CPU}}";
    let stats = podman
        .command(["stats", "--no-stream", "--format", format, &id])?
        .run()?
        .ok()?;
    let text = stats.text();
    let words: Vec<&str> = text.split_whitespace().collect();
    ensure!(words.len() == 5 && words[1] == "/", "{stats}");
    ensure!(words[0] != "0B" && words[2].ends_with("MB"), "{stats}");
    ensure!(words[3].parse::<u32>()? >= 1, "{stats}");
    ensure!(
        words[4].trim_end_matches('%').parse::<f64>()? > 0.0,
        "{stats}"
    );
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}
