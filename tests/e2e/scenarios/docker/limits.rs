//! Memory, processors and processes: seen inside, and enforced.

use anyhow::{Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::{BUSYBOX, Docker};

use super::{Body, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![limits, out_of_memory]
}

/// Prints the limits of a container's own cgroup, of version 2 or 1.
const LIMITS: &str = "cd /sys/fs/cgroup; \
    if test -e cgroup.controllers; then cat memory.max pids.max; cut -d ' ' -f 1 cpu.max; \
    else cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us; fi";

/// Prints how many hundredths of a processor the container used while it wanted all of them.
const SHARE: &str = "cd /sys/fs/cgroup; used() { if test -e cgroup.controllers; \
    then awk '/^usage_usec/ { print $2 / 1e6 }' cpu.stat; else awk '{ print $1 / 1e9 }' cpuacct/cpuacct.usage; fi; }; \
    look() { echo $(cut -d ' ' -f 1 /proc/uptime) $(used); }; before=$(look); \
    for n in 1 2 3 4; do timeout 3 sh -c 'while :; do :; done' 2>/dev/null & done; wait; \
    echo $before $(look) | awk '{ print 100 * ($4 - $2) / ($3 - $1) }'";

fn limits(docker: &Docker<'_>) -> Result<()> {
    let flags = [
        "--memory=64m",
        "--memory-swap=64m",
        "--cpus=0.5",
        "--pids-limit=20",
    ];
    let id = docker.run_detached([&flags[..], &[BUSYBOX, "sleep", "1000"]].concat())?;
    let seen = || docker.does(["exec", &id, "sh", "-c", LIMITS]);
    let first = seen()?;
    ensure!(first.text() == "67108864\n20\n50000", "{first}");
    let busy = docker.does(["exec", &id, "sh", "-c", SHARE])?;
    let percent: f64 = busy.text().parse()?;
    // Half a processor, and some room for the end of the last period.
    ensure!(percent < 75.0, "{busy}");
    // More processes than the limit, and the one that cannot be made.
    let script = "n=0; while test $n -lt 30; do sleep 2 & n=$((n+1)); done; wait";
    let crowd = docker.command(["exec", &id, "sh", "-c", script]).run()?;
    contains(&crowd.errors(), "can't fork")?;
    let update = [
        "update",
        "--memory=96m",
        "--memory-swap=96m",
        "--pids-limit=60",
        "--cpus=1",
    ];
    docker.does([&update[..], &[&id]].concat())?;
    let second = seen()?;
    ensure!(second.text() == "100663296\n60\n100000", "{second}");
    docker.remove(&[&id])
}

/// A program that takes more than it may.
const GLUTTON: &str = "exec tail /dev/zero";
const SMALL: [&str; 2] = ["--memory=32m", "--memory-swap=32m"];

/// The client is told of it.
fn out_of_memory(docker: &Docker<'_>) -> Result<()> {
    let words = ["--name=glutton", BUSYBOX, "sh", "-c", GLUTTON];
    let run = docker.run([&SMALL[..], &words].concat());
    run.run()?.exits(137)?;
    let state = docker.inspect("glutton", "{{.State.OOMKilled}} {{.State.ExitCode}}")?;
    ensure!(state == "true 137", "{state}");
    docker.remove(&["glutton"])?;
    // One beside the container's first process dies alone.
    let script = "tail /dev/zero & wait $!; echo $?";
    let words = ["--rm", BUSYBOX, "sh", "-c", script];
    let run = docker.run([&SMALL[..], &words].concat()).run()?.ok()?;
    ensure!(run.text().ends_with("137"), "{run}");
    Ok(())
}
