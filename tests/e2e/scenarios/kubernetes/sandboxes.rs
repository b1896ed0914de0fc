//! Pods by containerd's Sandbox API: the shim serves them, and no container of
//! the engine's is in them.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use casemate_e2e::containerd::{Refusal, Shim, Task, Tasks};
use casemate_e2e::cri::messages::{IDMapping, NamespaceMode, NamespaceOption};
use casemate_e2e::cri::{Cri, NAMESPACE, refusal};
use casemate_e2e::expect::contains;
use casemate_e2e::protos::api::Status;
use casemate_e2e::protos::protobuf::{Message, MessageField, well_known_types::any::Any};
use casemate_e2e::protos::sandbox_api as api;
use casemate_e2e::protos::ttrpc::Code;
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Containerd, Host, processes};
use serde_json::json;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![
        what_every_container_finds,
        sized_by_its_limits,
        host_namespaces,
        users_of_its_own,
        service,
        shut_down_while_it_runs,
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
    ensure!((290..360).contains(&total.parse::<u32>()?), "{total}");
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

/// A shim that the scenario has started itself, as containerd does for a pod: in
/// a bundle without a configuration.
struct Tower<'e, 'h> {
    shim: Shim<'e, 'h>,
    tasks: Tasks,
    service: Tasks,
}

impl<'e, 'h> Tower<'e, 'h> {
    fn start(containerd: &'e Containerd<'h>) -> Result<Tower<'e, 'h>> {
        let folder = containerd.host.new_folder("pod")?;
        fs::create_dir(folder.join("rootfs"))?;
        let shim = Shim::new(containerd, &folder)?;
        let tasks = shim.start()?.tasks;
        Ok(Tower {
            service: tasks.sandbox(),
            shim,
            tasks,
        })
    }

    /// A member: a task that joins its namespaces.
    fn member(&self, host: &Host, pid: u32, words: &[&str], folder: Option<&Path>) -> Result<Task> {
        let mut bundle = Bundle::new(host, words)?;
        if let Some(folder) = folder {
            bundle = bundle.bind(&folder.to_string_lossy(), "/said")?;
        }
        let bundle = bundle.edit(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut();
            for namespace in namespaces.into_iter().flatten() {
                let kind = namespace["type"].as_str().unwrap_or_default();
                let file = match kind {
                    "network" => "net",
                    "ipc" | "uts" => kind,
                    _ => continue,
                };
                namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
            }
        })?;
        self.run(host, &bundle)
    }

    /// A task that is put into it; nobody starts a shim for that.
    fn run(&self, host: &Host, bundle: &Bundle) -> Result<Task> {
        let task = Task {
            tasks: self.tasks.clone(),
            id: host.new_id(),
        };
        task.create(bundle.path())?;
        task.start("")?;
        Ok(task)
    }

    /// A member that ends with 7 when it is asked to, and says in a folder that it
    /// listens.
    fn obedient(&self, host: &Host, pid: u32, folder: &Path) -> Result<Task> {
        let words = "trap 'exit 7' TERM; touch /said/ready; while :; do sleep 0.1; done";
        let task = self.member(host, pid, &["sh", "-c", words], Some(folder))?;
        until_true("the container's word", SOON, || {
            Ok(folder.join("ready").exists())
        })?;
        Ok(task)
    }

    fn call<Q: Message, A: Message>(&self, method: &str, request: Q) -> Result<A, Refusal> {
        self.service.call(method, &request)
    }

    fn create(&self, options: MessageField<Any>) -> Result<api::CreateSandboxResponse, Refusal> {
        let request = api::CreateSandboxRequest {
            sandbox_id: self.shim.id.clone(),
            bundle_path: self.shim.path().to_owned(),
            options,
            ..Default::default()
        };
        self.call("CreateSandbox", request)
    }

    fn begin(&self, id: &str) -> Result<api::StartSandboxResponse, Refusal> {
        let request = api::StartSandboxRequest {
            sandbox_id: id.to_owned(),
            ..Default::default()
        };
        self.call("StartSandbox", request)
    }

    fn status(&self) -> Result<api::SandboxStatusResponse, Refusal> {
        let request = api::SandboxStatusRequest {
            sandbox_id: self.shim.id.clone(),
            verbose: true,
            ..Default::default()
        };
        self.call("SandboxStatus", request)
    }

    fn ping(&self) -> Result<api::PingResponse, Refusal> {
        let request = api::PingRequest {
            sandbox_id: self.shim.id.clone(),
            ..Default::default()
        };
        self.call("PingSandbox", request)
    }

    fn stop(&self, seconds: u32) -> Result<api::StopSandboxResponse, Refusal> {
        let request = api::StopSandboxRequest {
            sandbox_id: self.shim.id.clone(),
            timeout_secs: seconds,
            ..Default::default()
        };
        self.call("StopSandbox", request)
    }

    fn wait(&self) -> Result<api::WaitSandboxResponse, Refusal> {
        let request = api::WaitSandboxRequest {
            sandbox_id: self.shim.id.clone(),
            ..Default::default()
        };
        self.call("WaitSandbox", request)
    }

    fn metrics(&self) -> Result<api::SandboxMetricsResponse, Refusal> {
        let request = api::SandboxMetricsRequest {
            sandbox_id: self.shim.id.clone(),
            ..Default::default()
        };
        self.call("SandboxMetrics", request)
    }

    /// The end, after which nobody answers.
    fn shutdown(self) -> Result<()> {
        let request = api::ShutdownSandboxRequest {
            sandbox_id: self.shim.id.clone(),
            ..Default::default()
        };
        let _: api::ShutdownSandboxResponse = self.call("ShutdownSandbox", request)?;
        until_true("the shim's end", SOON, || {
            let folder = self.shim.path();
            let ours = processes::ours();
            Ok(!ours.iter().any(|process| process.has_word(folder)))
        })?;
        self.shim.delete()?;
        Ok(())
    }
}

/// Demands a refusal with this code.
fn refused<T: Debug>(code: Code, answer: Result<T, Refusal>) -> Result<()> {
    match answer {
        Err(refusal) if refusal.code == code => Ok(()),
        Err(refusal) => bail!("{code:?} was expected, not {refusal}"),
        Ok(answer) => bail!("{code:?} was expected, not {answer:?}"),
    }
}

/// What the service answers in every state, and with which codes it refuses.
fn service(containerd: &Containerd<'_>, _: &Cri<'_>) -> Result<()> {
    let tower = Tower::start(containerd)?;
    let id = tower.shim.id.clone();
    // There is a shim and no sandbox.
    refused(Code::FAILED_PRECONDITION, tower.begin(&id))?;
    refused(Code::FAILED_PRECONDITION, tower.ping())?;
    refused(Code::FAILED_PRECONDITION, tower.wait())?;
    refused(Code::NOT_FOUND, tower.begin("another"))?;
    let status = tower.status()?;
    ensure!(
        status.state == "SANDBOX_NOTREADY" && status.pid == 0,
        "{status}"
    );
    let strange = Any {
        type_url: "some.Options".to_owned(),
        ..Any::default()
    };
    refused(
        Code::INVALID_ARGUMENT,
        tower.create(MessageField::some(strange)),
    )?;

    tower.create(MessageField::none())?;
    refused(Code::ALREADY_EXISTS, tower.create(MessageField::none()))?;
    let begun = tower.begin(&id)?;
    ensure!(begun.created_at.seconds > 0, "{begun}");
    let stand_in = processes::get(begun.pid as i32).context("no process of the sandbox")?;
    ensure!(stand_in.has_word("stand-in"), "{stand_in}");
    refused(Code::FAILED_PRECONDITION, tower.begin(&id))?;
    let status = tower.status()?;
    ensure!(
        status.state == "SANDBOX_READY" && status.pid == begun.pid,
        "{status}"
    );
    ensure!(status.created_at == begun.created_at, "{status}");
    contains(&status.info["casemate"], "directory")?;
    tower.ping()?;

    let host = containerd.host;
    // One that asks for a network of its own has the sandbox's as well.
    let alone = Bundle::new(host, &["sleep", "1000"])?;
    let alone = tower.run(host, &alone)?;
    let folder = host.new_folder("said")?;
    let member = tower.obedient(host, begun.pid, &folder)?;
    let measured = tower
        .metrics()?
        .metrics
        .into_option()
        .context("no metrics")?;
    ensure!(
        measured.id == id && measured.data.type_url.ends_with(".Metrics"),
        "{measured}"
    );
    // Who is asked to end has time for it.
    tower.stop(2)?;
    ensure!(member.wait("")?.exit_status == 7);
    ensure!(alone.wait("")?.exit_status == 137);
    let exit = tower.wait()?;
    ensure!(exit.exited_at.seconds >= begun.created_at.seconds, "{exit}");
    let status = tower.status()?;
    ensure!(
        status.state == "SANDBOX_NOTREADY" && status.exited_at == exit.exited_at,
        "{status}"
    );
    refused(Code::UNAVAILABLE, tower.ping())?;
    // Twice is no error, and what has ended can still be asked for.
    tower.stop(0)?;
    ensure!(member.state("")?.status == Status::STOPPED.into());
    member.delete("")?;
    alone.delete("")?;
    tower.shutdown()
}

/// Nobody has stopped it or deleted what is in it; and a shim that has no sandbox.
fn shut_down_while_it_runs(containerd: &Containerd<'_>, _: &Cri<'_>) -> Result<()> {
    let tower = Tower::start(containerd)?;
    tower.create(MessageField::none())?;
    let begun = tower.begin(&tower.shim.id)?;
    for words in [&["sleep", "1000"], &["sleep", "2000"]] {
        tower.member(containerd.host, begun.pid, words, None)?;
    }
    tower.shutdown()?;
    let empty = Tower::start(containerd)?;
    empty.shutdown()?;
    // Its machine is still booting.
    let early = Tower::start(containerd)?;
    early.create(MessageField::none())?;
    early.shutdown()
}
