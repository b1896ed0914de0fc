//! Which namespaces the containers of a pod share.

use anyhow::{Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::cri::messages::{NamespaceMode, NamespaceOption};
use casemate_e2e::cri::{Cri, refusal};
use casemate_e2e::expect::contains;

use super::{Body, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![processes_of_the_pod, processes_of_another]
}

pub(super) fn only_vm() -> Vec<(&'static str, Body, &'static str)> {
    vec![(
        "namespaces_of_the_host",
        namespaces_of_the_host,
        "runc's containers run on the host's kernel and can share its namespaces",
    )]
}

/// `shareProcessNamespace`: they see each other, and the pod's first process is theirs.
fn processes_of_the_pod(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("shared");
    let pod = pod.namespaces(|namespaces| namespaces.pid = NamespaceMode::POD.into());
    let pod = pod.run()?;
    let first = pod.container("first", &["sleep", "1111"]).start()?;
    let second = pod.container("second", &["sleep", "2222"]).start()?;
    for container in [&first, &second] {
        let shown = container.sh("ps -o pid,args")?;
        contains(&shown, "sleep 1111")?;
        contains(&shown, "sleep 2222")?;
        ensure!(container.sh("cat /proc/1/comm")? != "sh");
        let own = container.sh("tr '\\0' ' ' </proc/1/cmdline")?;
        ensure!(!own.contains("1111") && !own.contains("2222"), "{own}");
    }
    // One may signal the other, whose end is its own.
    second.sh("kill -KILL $(ps -o pid,args | awk '/[s]leep 1111/ { print $1 }')")?;
    ensure!(first.ended()?.exit_code == 137);
    ensure!(pod.is_ready()?);
    let third = pod.container("third", &["sh", "-c", "readlink /proc/self/ns/pid"]);
    let third = third.start()?.exits(0)?;
    let again = pod
        .container("fourth", &["readlink", "/proc/self/ns/pid"])
        .start()?;
    ensure!(again.exits(0)? == third);
    pod.end()
}

/// A container for debugging sees the processes of the one it is to look at.
fn processes_of_another(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("target").run()?;
    let target = pod.container("target", &["sleep", "1111"]).start()?;
    let other = pod.container("other", &["sleep", "2222"]).start()?;
    let words = ["sh", "-c", "ps -o pid,args; cat /proc/1/root/mark"];
    target.sh("echo of the target >/mark")?;
    let debugger = pod.container("debugger", &words).security(|security| {
        let namespaces = security.namespace_options.mut_or_insert_default();
        namespaces.pid = NamespaceMode::TARGET.into();
        namespaces.target_id = target.id.clone();
        let capabilities = security.capabilities.mut_or_insert_default();
        capabilities.add_capabilities.push("SYS_PTRACE".to_owned());
    });
    let shown = debugger.start()?.exits(0)?;
    contains(&shown, "1 sleep 1111")?;
    contains(&shown, "of the target")?;
    ensure!(!shown.contains("2222"), "{shown}");
    ensure!(target.is_running()? && other.is_running()?);
    pod.end()
}

/// A machine of its own has namespaces of its own.
fn namespaces_of_the_host(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    type Change = fn(&mut NamespaceOption);
    let cases: [(&str, Change); 3] = [
        ("network", |options| {
            options.network = NamespaceMode::NODE.into()
        }),
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
