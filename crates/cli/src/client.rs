//! The command line's side of the conversation with a sandbox's monitor.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use casemate_linux::{process, reactor, socket};
use casemate_protocol::{
    monitor::{
        ContainerProcess, FiguresRequest, ProcessesRequest, TimelineRequest, TimelineResponse,
    },
    monitor_ttrpc::MonitorClient,
};
use casemate_sandbox::{Id, layout, state};
use casemate_shim::CONTROL_SOCKET;
use containerd_shim_protos::{
    api,
    cgroups_v2::metrics::Metrics,
    protobuf::{Message, MessageField, well_known_types::any::Any},
    shim_async::TaskClient,
};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;
use ttrpc::{
    Code,
    asynchronous::{Client, transport::Socket},
    context,
};

use crate::arguments::Global;

/// Longest wait for an answer that depends on the guest; creating includes the
/// boot, whose own limits are in the configuration.
const PATIENCE: Duration = Duration::from_secs(4000);

/// The exec id of a container's init.
pub const INIT: &str = "";

/// A container's place on the host: its id and its directory. What leads from
/// there to its sandbox is here and nowhere else.
#[derive(Debug, Clone)]
pub struct Place {
    pub id: Id,
    pub directory: PathBuf,
}

impl Place {
    /// The place of a container, whether it exists or not.
    ///
    /// # Errors
    /// For an id that is none.
    pub fn of(global: &Global, id: &str) -> Result<Self> {
        let id = Id::new(id)?;
        let root = std::path::absolute(&global.root)
            .with_context(|| format!("--root {}", global.root.display()))?;
        let directory = root.join(&id);
        Ok(Self { id, directory })
    }

    /// The directory that has those of all containers.
    pub fn root(&self) -> &Path {
        self.directory.parent().expect("a place is under its root")
    }

    /// The directory of its sandbox, in which the monitor listens.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn sandbox(&self) -> Result<PathBuf> {
        layout::sandbox_of(&self.directory)
            .ok_or(state::Error::Missing)
            .with_context(|| format!("container {:?}", self.id.as_str()))
    }

    /// The directory of its sandbox, if its monitor lives.
    pub fn living_sandbox(&self) -> Option<PathBuf> {
        layout::sandbox_of(&self.directory).filter(|sandbox| state::monitor_lives(sandbox))
    }

    /// The recorded state.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn state(&self) -> Result<state::State> {
        state::State::load(&self.directory)
            .with_context(|| format!("container {:?}", self.id.as_str()))
    }
}

/// A connection to the monitor of a container.
pub struct Monitor {
    id: String,
    client: Client,
    pid: u32,
    process: OwnedFd,
}

/// Runs `work` on a runtime of one thread.
///
/// # Errors
/// Those of `work`.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")?
        .block_on(work)
}

impl Monitor {
    /// Connects; call it on a runtime.
    ///
    /// # Errors
    /// When no monitor listens there.
    pub fn connect(place: &Place) -> Result<Self> {
        let sandbox = place.sandbox()?;
        let open = || {
            let stream = socket::connect(&sandbox.join(CONTROL_SOCKET))?;
            let listener = getsockopt(&stream, sockopt::PeerCredentials)?;
            let pid = listener.pid() as u32;
            let process = process::pidfd_open(pid)?;
            stream.set_nonblocking(true)?;
            Ok((UnixStream::from_std(stream)?, pid, process))
        };
        let opened: std::io::Result<_> = open();
        let (stream, pid, process) =
            opened.with_context(|| format!("monitor of container {:?}", place.id.as_str()))?;
        Ok(Self {
            id: place.id.to_string(),
            client: Client::new(Socket::new(stream)),
            pid,
            process,
        })
    }

    /// The monitor's process id on the host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the monitor's process has ended; kills it after `limit`.
    pub async fn await_end(self, limit: Duration) {
        let Self {
            process, client, ..
        } = self;
        drop(client);
        let Ok(watched) = process.try_clone().and_then(reactor::register_readable) else {
            return;
        };
        if tokio::time::timeout(limit, watched.readable())
            .await
            .is_err()
            && process::signal_pidfd(process.as_fd(), libc::SIGKILL).is_ok()
        {
            let _ = watched.readable().await;
        }
    }

    /// Task.Create with attached streams.
    ///
    /// # Errors
    /// Why the container was not made.
    pub async fn create(&self, bundle: &Path, terminal: bool) -> Result<u32> {
        let attached = || casemate_shim::ATTACHED.to_owned();
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            terminal,
            stdin: attached(),
            stdout: attached(),
            stderr: if terminal { String::new() } else { attached() },
            ..Default::default()
        };
        let response = self.task().create(patience(), &request).await;
        Ok(response.map_err(readable)?.pid)
    }

    /// Task.Exec with attached streams: `process` is OCI JSON.
    ///
    /// # Errors
    /// Why the process was not made.
    pub async fn exec(&self, exec: &str, process: Vec<u8>, terminal: bool) -> Result<()> {
        let attached = || casemate_shim::ATTACHED.to_owned();
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal,
            stdin: attached(),
            stdout: attached(),
            stderr: if terminal { String::new() } else { attached() },
            spec: json(
                "types.containerd.io/opencontainers/runtime-spec/1/Process",
                process,
            ),
            ..Default::default()
        };
        // One that waits for a paused container waits as long as that is so.
        let forever = context::with_timeout(0);
        self.task()
            .exec(forever, &request)
            .await
            .map_err(readable)?;
        Ok(())
    }

    /// Task.Start of a process; the empty exec id is the init.
    ///
    /// # Errors
    /// Why it was not started.
    pub async fn start(&self, exec: &str) -> Result<u32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let response = self.task().start(patience(), &request).await;
        Ok(response.map_err(readable)?.pid)
    }

    /// Task.Kill of a process, or of all.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.task()
            .kill(patience(), &request)
            .await
            .map_err(readable)?;
        Ok(())
    }

    /// Task.Pause, or with `false` Task.Resume.
    ///
    /// # Errors
    /// When it does not run, or is not paused.
    pub async fn freeze(&self, frozen: bool) -> Result<()> {
        let id = self.id.clone();
        let answer = if frozen {
            let request = api::PauseRequest {
                id,
                ..Default::default()
            };
            self.task().pause(patience(), &request).await
        } else {
            let request = api::ResumeRequest {
                id,
                ..Default::default()
            };
            self.task().resume(patience(), &request).await
        };
        answer.map(drop).map_err(readable)
    }

    /// Task.Update: `resources` is OCI JSON.
    ///
    /// # Errors
    /// When a limit cannot be had.
    pub async fn update(&self, resources: Vec<u8>) -> Result<()> {
        let request = api::UpdateTaskRequest {
            id: self.id.clone(),
            resources: json(
                "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
                resources,
            ),
            ..Default::default()
        };
        let answer = self.task().update(patience(), &request).await;
        answer.map(drop).map_err(readable)
    }

    /// What the container has used.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn stats(&self) -> Result<Metrics> {
        let client = MonitorClient::new(self.client.clone());
        let request = FiguresRequest {
            container_id: self.id.clone(),
            ..Default::default()
        };
        let response = client.figures(patience(), &request).await;
        let metrics = response.map_err(readable)?.metrics;
        Metrics::parse_from_bytes(&metrics).context("figures of the container")
    }

    /// The processes of the container in its guest.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn processes(&self) -> Result<Vec<ContainerProcess>> {
        let client = MonitorClient::new(self.client.clone());
        let request = ProcessesRequest {
            container_id: self.id.clone(),
            ..Default::default()
        };
        let response = client.processes(patience(), &request).await;
        Ok(response.map_err(readable)?.processes)
    }

    /// Task.Wait for the init process; one that is unknown has ended.
    ///
    /// # Errors
    /// When the monitor goes away.
    pub async fn wait(&self) -> Result<()> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        match self.task().wait(context::with_timeout(0), &request).await {
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => Ok(()),
            answer => answer.map(drop).map_err(readable),
        }
    }

    /// Task.ResizePty of a process.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn resize(&self, exec: &str, columns: u32, rows: u32) -> Result<()> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            width: columns,
            height: rows,
            ..Default::default()
        };
        self.task()
            .resize_pty(patience(), &request)
            .await
            .map_err(readable)?;
        Ok(())
    }

    /// Task.Delete. One that is unknown has been deleted by somebody else, and
    /// with its last container the monitor may hang up: neither is a failure.
    ///
    /// # Errors
    /// When it still runs.
    pub async fn delete(&self) -> Result<()> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        match self.task().delete(patience(), &request).await {
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => Ok(()),
            Err(error @ ttrpc::Error::RpcStatus(_)) => Err(readable(error)),
            _ => Ok(()),
        }
    }

    /// Task.Shutdown: the sandbox ends when no other container needs it, or
    /// `now`. That the monitor hangs up meanwhile is no failure.
    ///
    /// # Errors
    /// What could not be undone.
    pub async fn shutdown(&self, now: bool) -> Result<()> {
        let request = api::ShutdownRequest {
            id: self.id.clone(),
            now,
            ..Default::default()
        };
        match self.task().shutdown(patience(), &request).await {
            Err(error @ ttrpc::Error::RpcStatus(_)) => Err(readable(error)),
            _ => Ok(()),
        }
    }

    /// The sandbox's timeline.
    ///
    /// # Errors
    /// When the monitor goes away.
    pub async fn timeline(&self) -> Result<TimelineResponse> {
        let client = MonitorClient::new(self.client.clone());
        let response = client
            .timeline(patience(), &TimelineRequest::default())
            .await;
        response.map_err(readable)
    }

    fn task(&self) -> TaskClient {
        TaskClient::new(self.client.clone())
    }
}

/// As containerd sends OCI types: the type by its URL, JSON within.
fn json(type_url: &str, value: Vec<u8>) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: type_url.to_owned(),
        value,
        ..Default::default()
    })
}

fn patience() -> context::Context {
    context::with_duration(PATIENCE)
}

/// The monitor's own words, without the transport's.
fn readable(error: ttrpc::Error) -> anyhow::Error {
    match error {
        ttrpc::Error::RpcStatus(status)
            if status.code() == Code::DEADLINE_EXCEEDED && status.message().is_empty() =>
        {
            anyhow::anyhow!("the monitor did not answer within {PATIENCE:?}")
        }
        ttrpc::Error::RpcStatus(status) => anyhow::anyhow!("{}", status.message()),
        other => anyhow::anyhow!("the monitor hung up: {other}"),
    }
}
