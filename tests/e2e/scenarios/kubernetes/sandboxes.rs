//! Pods by containerd's Sandbox API: the shim serves them, and no container of
//! the engine's is in them.

use anyhow::{Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::cri::messages::{
    IDMapping, NamespaceMode, NamespaceOption, PodSandboxRequest, PodSandboxStatusResponse,
};
use casemate_e2e::cri::{Cri, NAMESPACE, refusal};
use casemate_e2e::expect::contains;

use super::{Body, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![
        what_every_container_finds,
        sized_by_its_limits,
        host_namespaces,
        users_of_its_own,
    ]
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
        let expected = "search example\nnameserver 192.0.2.1\noptions ndots:2";
        ensure!(resolver == expected, "{resolver}");
        contains(&container.sh("cat /etc/hosts")?, "localhost")?;
        let written = container.exec(&["sh", "-c", "echo x >>/etc/hosts"])?;
        contains(&written.stderr, "Read-only file system")?;
    }
    one.sh("echo word >/dev/shm/mark")?;
    let seen = two.sh("cat /dev/shm/mark; df -m /dev/shm | awk 'NR == 2 { print $2 }'")?;
    ensure!(seen == "word\n64", "{seen}");
    // It outlives who wrote it, and every container.
    for container in [&one, &two] {
        container.stop(0)?;
        container.remove()?;
    }
    let three = pod.container("three", &["cat", "/dev/shm/mark"]).start()?;
    ensure!(three.exits(0)? == "word");
    // No container of the engine's holds the pod.
    let listed = containerd
        .namespace(NAMESPACE)
        .does(["containers", "ls", "-q"])?
        .text();
    ensure!(!listed.contains(&pod.id), "{listed}");
    let request = PodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
        ..Default::default()
    };
    let status: PodSandboxStatusResponse = cri.runtime("PodSandboxStatus", &request)?;
    contains(&status.info["casemate"], "/.sandbox-")?;
    pod.end()
}

/// The limits of the pod, and its kernel parameters, make its machine.
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
    // 256 + 100 MiB; a clone grows in steps of 128 MiB.
    ensure!((290..384).contains(&total.parse::<u32>()?), "{total}");
    ensure!(main.sh("nproc; cat /proc/sys/net/ipv4/ip_forward")? == "2\n1");
    pod.end()
}

/// The network of the host is not asked for here: containerd 2.1 ends with a
/// panic before it asks a shim.
fn host_namespaces(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    type Change = fn(&mut NamespaceOption);
    let cases: [(&str, Change); 2] = [
        ("pid", |options| options.pid = NamespaceMode::NODE.into()),
        ("ipc", |options| options.ipc = NamespaceMode::NODE.into()),
    ];
    for (what, change) in cases {
        let refused = refusal(cri.pod(what).namespaces(change).run().map(|_| ()))?;
        contains(&refused.message, what)?;
        contains(&refused.message, "host")?;
        cri.nothing_left()?;
    }
    Ok(())
}

/// `hostUsers: false`: the pod has a user namespace, and its containers the
/// reason why they cannot be.
fn users_of_its_own(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let own = |options: &mut NamespaceOption| {
        let users = options.userns_options.mut_or_insert_default();
        users.mode = NamespaceMode::POD.into();
        let range = IDMapping {
            host_id: 200_000,
            length: 65_536,
            ..IDMapping::default()
        };
        users.uids.push(range.clone());
        users.gids.push(range);
    };
    let pod = cri.pod("users").namespaces(own).run()?;
    ensure!(pod.is_ready()?);
    let main = pod.idle("main").create()?;
    let refused = refusal(main.start())?;
    contains(&refused.message, "uidmap=0:200000:65536: ID-mapped")?;
    ensure!(pod.is_ready()?);
    pod.end()
}
