//! A pod as Kubernetes' runtimes ask for it: a sandbox container, which the
//! annotations name, and members in its namespaces.

use std::fs;

use anyhow::{Result, ensure};
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::isolation::small_disk;
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Container, Host, Scenario, scenarios};
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};

use super::{SOON, exec, join};

pub(super) fn scenarios() -> Vec<Scenario> {
    let all = scenarios![holds_the_pod, ends_when_told, runs_nothing];
    let reason = "runc runs the program of the sandbox container";
    all.into_iter().map(|one| one.only_vm(reason)).collect()
}

const SHARED: &[&str] = &["network", "ipc", "uts", "pid"];

/// A sandbox container as containerd describes it, but without a root file
/// system, and with the memory of the pod as small as can be told.
fn sandbox(host: &Host) -> Result<Bundle> {
    let bundle = Bundle::new(host, &["/pause"])?;
    fs::remove_dir_all(bundle.dir.join("rootfs"))?;
    let memory = bundle.dir.join("shm");
    fs::create_dir(&memory)?;
    small_disk(&memory, 1 << 20)?;
    let sysctl = json!({"kernel.msgmax": "4321"});
    bundle.edit(|spec| {
        spec["hostname"] = json!("tower");
        spec["annotations"] = json!({"io.kubernetes.cri.container-type": "sandbox"});
        spec["process"]["user"] = json!({"uid": 65_535, "gid": 65_535});
        spec["linux"]["sysctl"] = sysctl;
        bind_memory(spec, &memory.to_string_lossy(), "ro");
    })
}

fn bind_memory(spec: &mut Value, source: &str, access: &str) {
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        let options = ["rbind", "rprivate", access];
        mounts.push(
            json!({"destination": "/dev/shm", "type": "bind", "source": source, "options": options}),
        );
    }
}

fn member<'h>(
    host: &'h Host,
    sandbox: &Bundle,
    of: &Container<'_>,
    arguments: &[&str],
) -> Result<Container<'h>> {
    let memory = sandbox.dir.join("shm");
    let bundle = Bundle::new(host, arguments)?.edit(|spec| {
        join(spec, of.pid, SHARED);
        spec["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": of.id,
        });
        bind_memory(spec, &memory.to_string_lossy(), "rw");
    })?;
    Container::run(host, &bundle)
}

/// Takes the pod's memory away, as a client does in the end.
fn clean(bundle: &Bundle) -> Result<()> {
    Ok(umount2(&bundle.dir.join("shm"), MntFlags::empty())?)
}

/// Members find what the sandbox container was made with, and each other.
fn holds_the_pod(host: &Host) -> Result<()> {
    let bundle = sandbox(host)?;
    let first = Container::run(host, &bundle)?;
    ensure!(first.state()?["status"] == json!("running"));
    let stay = member(host, &bundle, &first, &["sleep", "1000"])?;
    let look = "hostname; cat /proc/sys/kernel/msgmax; ps -o pid,user,args | grep '[/]pause'; \
        ls -A /proc/1/root/ 2> /dev/null; ls -A /proc/1/fd/ 2> /dev/null; df -k /dev/shm | awk 'NR == 2 { print $2 }'";
    let seen = exec(host, &stay, look)?;
    let seen: Vec<_> = seen.split_whitespace().collect();
    ensure!(
        seen == ["tower", "4321", "1", "65535", "/pause", "1024"],
        "{seen:?}"
    );
    let writer = [
        "sh",
        "-c",
        "echo kept > /dev/shm/mark; (sleep 1 & exec sleep 0.1)",
    ];
    member(host, &bundle, &first, &writer)?.end(0)?;
    ensure!(exec(host, &stay, "cat /dev/shm/mark")? == "kept");
    until_true(
        "the end of what was left to the first process",
        SOON,
        || {
            let processes = exec(host, &stay, "ps -o args | grep -c '[s]leep' || true")?;
            Ok(processes == "1")
        },
    )?;
    let zombies = exec(
        host,
        &stay,
        "grep -l '^State:.Z' /proc/[0-9]*/status || true",
    )?;
    ensure!(zombies.is_empty(), "{zombies}");

    // The memory is the pod's, not that of a member.
    stay.delete_force()?;
    let reader = member(host, &bundle, &first, &["cat", "/dev/shm/mark"])?;
    ensure!(reader.end(0)? == "kept\n");
    let table = host.oci(&["ps", &first.id]).run()?.ok()?.text();
    contains(&table, "/pause")?;
    first.delete_force()?;
    clean(&bundle)
}

/// It ends as a pause program does, and the processes of the pod with it.
fn ends_when_told(host: &Host) -> Result<()> {
    for (signal, status) in [("TERM", 0), ("INT", 0), ("KILL", 137)] {
        let bundle = sandbox(host)?;
        let first = Container::run(host, &bundle)?;
        let stay = member(host, &bundle, &first, &["sleep", "1000"])?;
        first.kill("HUP")?.ok()?;
        first.kill(signal)?.ok()?;
        ensure!(first.wait(SOON)?.shell() == status);
        ensure!(stay.wait(SOON)?.shell() == 137);
        until_true("the status `stopped`", SOON, || {
            Ok(first.status()? == "stopped")
        })?;
        stay.delete_force()?;
        first.delete()?;
        clean(&bundle)?;
    }
    Ok(())
}

/// There is nothing to execute in it, for a hook neither.
fn runs_nothing(host: &Host) -> Result<()> {
    let bundle = sandbox(host)?;
    let first = Container::run(host, &bundle)?;
    let refused = host.oci(&["exec", &first.id, "sh"]).run()?;
    ensure!(refused.exit.shell() != 0, "{refused}");
    contains(
        &one_clear_line(&refused)?,
        "exec: \"sh\": executable file not found in $PATH: a pod's sandbox container has no programs",
    )?;
    ensure!(first.status()? == "running");
    first.delete_force()?;
    let bundle = bundle.edit(|spec| {
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/true"}]});
    })?;
    let refused = host
        .oci(&["create", "--bundle", bundle.path(), &host.new_id()])
        .run()?
        .exits(1)?;
    contains(
        &one_clear_line(&refused)?,
        "hooks.startContainer: a pod's sandbox container has no program",
    )?;
    clean(&bundle)
}
