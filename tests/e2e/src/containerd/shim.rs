//! A shim called as containerd calls it: its command line, and its Task service
//! without an engine between.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::{Client, Code, Error, Request};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use super::{Containerd, Task};
use crate::command::Command;

/// How long a call may take; one that is held open on purpose gets another.
const PATIENCE: Duration = Duration::from_secs(60);

/// The names of the Task service: 1.6 and 1.7 know the first, 2.0 and later
/// both.
const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The name of the Sandbox service.
const SANDBOX_SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// Why a call was refused.
#[derive(Debug)]
pub struct Refusal {
    /// The code, by which clients decide what to do.
    pub code: Code,
    /// What a person reads.
    pub text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.code, self.text)
    }
}

impl std::error::Error for Refusal {}

/// The Task service of a running shim.
#[derive(Clone)]
pub struct Tasks {
    client: Client,
    service: &'static str,
}

impl Tasks {
    /// The shim at an address as `start` prints it. It is spoken to by the
    /// first name that it knows.
    pub fn connect(address: &str) -> Result<Tasks> {
        let [second, third] = Tasks::connect_by_each_name(address)?;
        // Every shim answers, if only that it does not know the container.
        let asked: Result<api::StateResponse, _> = second.call("State", &api::StateRequest::new());
        let unknown = asked.is_err_and(|refusal| refusal.code == Code::UNIMPLEMENTED);
        Ok(if unknown { third } else { second })
    }

    /// The shim's service by its older and by its newer name.
    pub fn connect_by_each_name(address: &str) -> Result<[Tasks; 2]> {
        let client = Client::connect(address).map_err(|error| anyhow!("{address}: {error}"))?;
        Ok(SERVICES.map(|service| Tasks {
            client: client.clone(),
            service,
        }))
    }

    /// The Sandbox service of the same shim.
    pub fn sandbox(&self) -> Tasks {
        Tasks {
            client: self.client.clone(),
            service: SANDBOX_SERVICE,
        }
    }

    /// Calls a method.
    pub fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Result<A, Refusal> {
        self.call_within(PATIENCE, method, request)
    }

    /// Calls a method that may take so long.
    pub fn call_within<Q: Message, A: Message>(
        &self,
        limit: Duration,
        method: &str,
        request: &Q,
    ) -> Result<A, Refusal> {
        let broken = |text: String| Refusal {
            code: Code::UNKNOWN,
            text,
        };
        let request = Request {
            service: self.service.to_owned(),
            method: method.to_owned(),
            timeout_nano: limit.as_nanos() as i64,
            payload: request
                .write_to_bytes()
                .map_err(|e| broken(e.to_string()))?,
            ..Request::default()
        };
        let response = self.client.request(request).map_err(|error| match error {
            Error::RpcStatus(status) => Refusal {
                code: status.code(),
                text: status.message,
            },
            other => broken(other.to_string()),
        })?;
        A::parse_from_bytes(&response.payload).map_err(|e| broken(e.to_string()))
    }
}

/// A shim that the scenario has started itself, for a bundle of its own.
pub struct Shim<'e, 'h> {
    containerd: &'e Containerd<'h>,
    /// The id of its container.
    pub id: String,
    /// The folder with `config.json`.
    pub bundle: PathBuf,
    /// What it logs goes into a FIFO there, which somebody has open.
    _log: File,
}

impl<'e, 'h> Shim<'e, 'h> {
    /// A shim for a bundle, not started yet. Its container is called as the
    /// folder is, which some shims take for granted.
    pub fn new(containerd: &'e Containerd<'h>, bundle: &Path) -> Result<Shim<'e, 'h>> {
        let log = bundle.join("log");
        mkfifo(&log, Mode::from_bits_truncate(0o700)).context("the log's FIFO")?;
        // Both ways, so as not to wait for the other side.
        let log = OpenOptions::new().read(true).write(true).open(log)?;
        Ok(Shim {
            containerd,
            id: bundle
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into(),
            bundle: bundle.to_owned(),
            _log: log,
        })
    }

    /// The shim's command line with what containerd tells every verb, run in
    /// the bundle.
    pub fn verb(&self, verb: &str, flags: &[&str]) -> Command<'h> {
        self.command(flags).arg(verb)
    }

    fn command(&self, flags: &[&str]) -> Command<'h> {
        let socket = self.containerd.socket();
        let events = format!("{}.ttrpc", socket.display());
        let enter = "cd \"$1\" && shift && exec \"$@\"";
        self.containerd
            .beside("env")
            .arg(format!("TTRPC_ADDRESS={events}"))
            .args(["GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "NAMESPACE=default"])
            .arg(format!("GRPC_ADDRESS={}", socket.display()))
            .args(["sh", "-c", enter, "sh"])
            .arg(&self.bundle)
            .arg(self.containerd.shim())
            .args(["-namespace", "default", "-address"])
            .arg(socket)
            .arg("-publish-binary")
            .arg(self.containerd.program("containerd"))
            .args(["-id", &self.id])
            .args(flags)
    }

    /// Starts it and gives the task of its container, which is not made yet.
    pub fn start(&self) -> Result<Task> {
        let started = self.verb("start", &[]).run()?.ok()?;
        self.task(&started.text())
    }

    /// The task, from what `start` has printed.
    pub fn task(&self, printed: &str) -> Result<Task> {
        let tasks = Tasks::connect(&address(printed)?)?;
        let id = self.id.clone();
        Ok(Task { tasks, id })
    }

    /// The bundle as an argument.
    pub fn path(&self) -> &str {
        self.bundle.to_str().unwrap_or_default()
    }

    /// Has it undo what a task has left: `delete`, as after its death.
    pub fn delete(&self) -> Result<api::DeleteResponse> {
        let flags = ["-bundle", self.path()];
        let deleted = self.verb("delete", &flags).run()?.ok()?;
        api::DeleteResponse::parse_from_bytes(&deleted.stdout).context("what `delete` prints")
    }
}

impl Containerd<'_> {
    /// The task of a container of this engine, of its shim.
    pub fn task(&self, namespace: &str, id: &str) -> Result<Task> {
        let tasks = Tasks::connect(&self.shim_address(namespace, id)?)?;
        let id = id.to_owned();
        Ok(Task { tasks, id })
    }

    /// Where this shim listens, as its bundle says: newer engines write JSON,
    /// which tells the version of the service as well.
    pub fn shim_address(&self, namespace: &str, id: &str) -> Result<String> {
        let bundle = self.bundle(namespace, id);
        let read = |name| fs::read_to_string(bundle.join(name));
        let written = read("bootstrap.json").or_else(|_| read("address"));
        address(&written.with_context(|| bundle.display().to_string())?)
    }
}

/// The address in what `start` prints: alone, or as the field of an object.
fn address(printed: &str) -> Result<String> {
    let address = match serde_json::from_str::<Value>(printed) {
        Ok(object) => object["address"].as_str().unwrap_or_default().to_owned(),
        Err(_) => printed.trim().to_owned(),
    };
    ensure!(address.starts_with("unix://"), "no address: {printed:?}");
    Ok(address)
}
