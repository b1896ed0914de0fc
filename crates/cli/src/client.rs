//! The command line's side of the conversation with a sandbox's monitor.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use casemate_linux::{process, reactor, socket};
use casemate_protocol::{
    monitor::TimelineRequest, monitor::TimelineResponse, monitor_ttrpc::MonitorClient,
};
use casemate_sandbox::{Id, state};
use casemate_shim::CONTROL_SOCKET;
use containerd_shim_protos::{api, shim_async::TaskClient};
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

/// A container's place on the host: its id and its directory.
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
        let open = || {
            let stream = socket::connect(&place.directory.join(CONTROL_SOCKET))?;
            let listener = getsockopt(&stream, sockopt::PeerCredentials)?;
            let process = process::pidfd_open(listener.pid() as u32)?;
            stream.set_nonblocking(true)?;
            Ok((UnixStream::from_std(stream)?, process))
        };
        let opened: std::io::Result<_> = open();
        let (stream, process) =
            opened.with_context(|| format!("monitor of container {:?}", place.id.as_str()))?;
        Ok(Self {
            id: place.id.to_string(),
            client: Client::new(Socket::new(stream)),
            process,
        })
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

    /// Task.Start of the init process.
    ///
    /// # Errors
    /// Why it was not started.
    pub async fn start(&self) -> Result<u32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let response = self.task().start(patience(), &request).await;
        Ok(response.map_err(readable)?.pid)
    }

    /// Task.Kill of the init process, or of all.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self, signal: u32, all: bool) -> Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
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

    /// Task.Wait for the init process.
    ///
    /// # Errors
    /// When the monitor goes away.
    pub async fn wait(&self) -> Result<u32> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let response = self.task().wait(context::with_timeout(0), &request).await;
        Ok(response.map_err(readable)?.exit_status)
    }

    /// Task.ResizePty of the init process.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
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

    /// Task.Delete.
    ///
    /// # Errors
    /// When it still runs.
    pub async fn delete(&self) -> Result<()> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.task()
            .delete(patience(), &request)
            .await
            .map_err(readable)?;
        Ok(())
    }

    /// Task.Shutdown: the sandbox ends. That the monitor hangs up meanwhile is
    /// no failure.
    ///
    /// # Errors
    /// What could not be undone.
    pub async fn shutdown(&self) -> Result<()> {
        let request = api::ShutdownRequest {
            id: self.id.clone(),
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
