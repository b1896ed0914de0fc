//! The Sandbox service of a shim that the scenario has started itself.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use casemate_e2e::containerd::{Refusal, Shim, Task, Tasks};
use casemate_e2e::cri::Cri;
use casemate_e2e::expect::contains;
use casemate_e2e::protos::api::Status;
use casemate_e2e::protos::protobuf::{Message, MessageField, well_known_types::any::Any};
use casemate_e2e::protos::sandbox_api as api;
use casemate_e2e::protos::ttrpc::Code;
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Containerd, Host, processes};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![service, shut_down_while_it_runs, guest_that_hangs]
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

/// It is stopped all the same, by the end of its machine.
fn guest_that_hangs(containerd: &Containerd<'_>, _: &Cri<'_>) -> Result<()> {
    let tower = Tower::start(containerd)?;
    tower.create(MessageField::none())?;
    tower.begin(&tower.shim.id)?;
    let found = processes::ours().into_iter();
    let mut machines = found.filter(|process| process.has_word("-nodefaults"));
    let machine = machines.next().context("no machine")?;
    kill(Pid::from_raw(machine.pid), Signal::SIGSTOP)?;
    tower.stop(0)?;
    ensure!(tower.wait()?.exit_status == 137);
    ensure!(tower.status()?.state == "SANDBOX_NOTREADY");
    refused(Code::UNAVAILABLE, tower.ping())?;
    tower.shutdown()
}
