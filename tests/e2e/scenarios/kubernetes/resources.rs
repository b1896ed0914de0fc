//! Limits and statistics.

use anyhow::{Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::cri::Cri;
use casemate_e2e::cri::messages::{ContainerStats, Empty, ListContainerStatsResponse};

use super::{Body, bodies};

/// Those for every kind of pod.
pub(super) fn core() -> Vec<(&'static str, Body)> {
    bodies![limits, out_of_memory]
}

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    [core(), bodies![statistics]].concat()
}

const MIB: i64 = 1 << 20;

/// Prints the limits of a container's own cgroup, of version 2 or 1.
const LIMITS: &str = "cd /sys/fs/cgroup; \
    if test -e cgroup.controllers; then cat memory.max; cut -d ' ' -f 1 cpu.max; \
    else cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us; fi";

/// In force from the start, and changed in place.
fn limits(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("limits").run()?;
    let main = pod.idle("main").resources(|resources| {
        resources.memory_limit_in_bytes = 64 * MIB;
        resources.cpu_period = 100_000;
        resources.cpu_quota = 50_000;
        resources.cpu_shares = 512;
    });
    let main = main.start()?;
    let free = pod.idle("free").start()?;
    let before = free.sh(LIMITS)?;
    ensure!(main.sh(LIMITS)? == "67108864\n50000");
    for (mib, quota) in [(96, 100_000), (48, 20_000)] {
        main.update(|resources| {
            resources.memory_limit_in_bytes = mib * MIB;
            resources.cpu_period = 100_000;
            resources.cpu_quota = quota;
        })?;
        let seen = main.sh(LIMITS)?;
        ensure!(seen == format!("{}\n{quota}", mib * MIB), "{seen}");
    }
    ensure!(main.is_running()?, "it was started anew");
    // The other's are its own.
    ensure!(free.sh(LIMITS)? == before);
    pod.end()
}

/// Who takes more than it may is killed, and that is its reason; the others go on.
fn out_of_memory(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("memory").run()?;
    let witness = pod.idle("witness").start()?;
    let small = |name: &str, words: &[&str]| {
        let container = pod.container(name, words).resources(|resources| {
            resources.memory_limit_in_bytes = 32 * MIB;
            resources.memory_swap_limit_in_bytes = 32 * MIB;
        });
        container.start()
    };
    for attempt in ["glutton", "another"] {
        let glutton = small(attempt, &["tail", "/dev/zero"])?;
        let status = glutton.ended()?;
        ensure!(
            status.exit_code == 137 && status.reason == "OOMKilled",
            "{status}"
        );
    }
    // One beside the first process dies alone.
    let script = "tail /dev/zero & wait $!; echo $?; exec sleep 1000";
    let beside = small("beside", &["sh", "-c", script])?;
    beside.await_log("137")?;
    ensure!(beside.is_running()? && witness.is_running()? && pod.is_ready()?);
    pod.end()
}

/// What containers and pods use.
fn statistics(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("statistics").run()?;
    let idle = pod.idle("idle").start()?;
    let script = "head -c 20000000 /dev/zero | tail -c 20000000 | sleep 1000 & while :; do :; done";
    let busy = pod.container("busy", &["sh", "-c", script]).start()?;
    let used = |stats: &ContainerStats| stats.cpu.usage_core_nano_seconds.value;
    let first = busy.stats()?;
    ensure!(
        first.attributes.id == busy.id && first.cpu.timestamp > 0,
        "{first}"
    );
    let grown = casemate_e2e::wait::until("more use of a processor", super::SOON, || {
        let stats = busy.stats()?;
        Ok((used(&stats) > used(&first) + 200_000_000).then_some(stats))
    })?;
    let memory = grown.memory.working_set_bytes.value;
    ensure!((100_000..200_000_000).contains(&memory), "{grown}");
    let rest = idle.stats()?;
    ensure!(used(&rest) < used(&grown), "{rest}\n{grown}");
    let all: ListContainerStatsResponse = cri.runtime("ListContainerStats", &Empty::new())?;
    let listed = |id: &str| all.stats.iter().any(|stats| stats.attributes.id == id);
    ensure!(
        all.stats.len() == 2 && listed(&idle.id) && listed(&busy.id),
        "{all}"
    );
    let whole = pod.stats()?;
    ensure!(whole.containers.len() == 2, "{whole}");
    ensure!(whole.cpu.usage_core_nano_seconds.value > 0, "{whole}");
    ensure!(whole.memory.working_set_bytes.value > 0, "{whole}");
    // The pod's own, sleep, and the others' shells and programs.
    ensure!(whole.process.process_count.value >= 3, "{whole}");
    pod.end()
}
