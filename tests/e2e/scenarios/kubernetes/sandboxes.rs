//! Pods by containerd's Sandbox API: the shim serves them, and no container of
//! the engine's is in them.

use anyhow::{Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::cri::{Cri, NAMESPACE};
use casemate_e2e::expect::contains;

use super::{Body, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![what_every_container_finds, sized_by_its_limits, by_ctr]
}

const MIB: i64 = 1 << 20;

/// Name, hosts and name servers, which the engine has not made; and the shared
/// memory is the pod's.
fn what_every_container_finds(containerd: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri
        .pod("found")
        .dns(&["192.0.2.1"], &["example"], &["ndots:2"]);
    let pod = pod.run()?;
    let one = pod.idle("one").start()?;
    let two = pod.idle("two").start()?;
    for container in [&one, &two] {
        ensure!(container.sh("hostname; cat /etc/hostname")? == "found\nfound");
        let resolver = container.sh("cat /etc/resolv.conf")?;
        ensure!(
            resolver == "search example\nnameserver 192.0.2.1\noptions ndots:2",
            "{resolver}"
        );
        contains(&container.sh("cat /etc/hosts")?, "localhost")?;
        let written = container.exec(&["sh", "-c", "echo x >>/etc/hosts"])?;
        contains(&written.stderr, "Read-only file system")?;
    }
    one.sh("echo word >/dev/shm/mark")?;
    ensure!(
        two.sh("cat /dev/shm/mark; df -m /dev/shm | awk 'NR == 2 { print $2 }'")? == "word\n64"
    );
    // It outlives who wrote it.
    one.stop(0)?;
    one.remove()?;
    two.stop(0)?;
    let three = pod.container("three", &["cat", "/dev/shm/mark"]).start()?;
    ensure!(three.exits(0)? == "word");
    // No container of the engine's holds the pod.
    let listed = containerd
        .namespace(NAMESPACE)
        .does(["containers", "ls", "-q"])?;
    ensure!(!listed.text().contains(&pod.id), "{}", listed.text());
    pod.end()
}

/// The limits of the pod, and its annotations, make its machine.
fn sized_by_its_limits(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("sized").edit(|config| {
        let linux = config.linux.mut_or_insert_default();
        let limits = linux.resources.mut_or_insert_default();
        limits.memory_limit_in_bytes = 100 * MIB;
        limits.cpu_period = 100_000;
        limits.cpu_quota = 200_000;
    });
    let pod = pod.sysctl("net.ipv4.ip_forward", "1").run()?;
    let main = pod.idle("main").start()?;
    let total = main.sh("awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo")?;
    ensure!((290..360).contains(&total.parse::<u32>()?), "{total}");
    ensure!(main.sh("nproc; cat /proc/sys/net/ipv4/ip_forward")? == "2\n1");
    pod.end()
}

/// Without a kubelet: `ctr sandboxes`, and containers that are put into one.
fn by_ctr(containerd: &Containerd<'_>, _: &Cri<'_>) -> Result<()> {
    let ctr = containerd.namespace(NAMESPACE);
    ctr.does([
        "sandboxes",
        "run",
        "--runtime",
        &containerd.runtime(),
        "tower",
    ])?;
    contains(&ctr.does(["sandboxes", "ls"])?.text(), "tower")?;
    ctr.does(["sandboxes", "ping", "tower"])?;
    ctr.does(["sandboxes", "rm", "tower"])?;
    ensure!(
        ctr.command(["sandboxes", "ping", "tower"])
            .run()?
            .exit
            .shell()
            != 0
    );
    Ok(())
}
