//! containerd's Task service over a sandbox.
//!
//! What is not here yet answers with the generated service's own "not
//! supported".

use std::path::PathBuf;

use async_trait::async_trait;
use casemate_sandbox::{Create, ExitStatus, Handle, Id, Key, Stop, state::Status};
use containerd_shim_protos::{
    api,
    protobuf::{EnumOrUnknown, MessageField, well_known_types::timestamp::Timestamp},
    shim_async::Task,
    types::task::{ProcessInfo, Status as TaskStatus},
};
use ttrpc::{Result, asynchronous::TtrpcContext};

use crate::{
    metrics,
    status::{from_error, internal, invalid},
};

/// In place of a path in Create and Exec: the stream's descriptor came over the
/// attach socket.
pub const ATTACHED: &str = "attached";

pub(crate) struct TaskService {
    sandbox: Handle,
}

impl TaskService {
    pub(crate) fn new(sandbox: Handle) -> Self {
        Self { sandbox }
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> Result<api::CreateTaskResponse> {
        only_attached([&request.stdin, &request.stdout, &request.stderr])?;
        if !request.rootfs.is_empty() {
            return Err(invalid("mounts for the root file system are not supported"));
        }
        if !request.checkpoint.is_empty() {
            return Err(invalid("restoring from a checkpoint is not supported"));
        }
        let create = Create {
            id: id(&request.id)?,
            bundle: PathBuf::from(request.bundle),
            rootfs: Vec::new(),
        };
        let pid = self.sandbox.create(create).await.map_err(from_error)?;
        Ok(api::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> Result<api::StartResponse> {
        let key = key(&request.id, &request.exec_id)?;
        let pid = self.sandbox.start(key).await.map_err(from_error)?;
        Ok(api::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> Result<api::Empty> {
        only_attached([&request.stdin, &request.stdout, &request.stderr])?;
        if request.exec_id.is_empty() {
            return Err(invalid("exec without an id"));
        }
        let key = key(&request.id, &request.exec_id)?;
        let process = request
            .spec
            .into_option()
            .ok_or_else(|| invalid("exec without a process"))?;
        self.sandbox
            .exec(key, process.value)
            .await
            .map_err(from_error)?;
        Ok(api::Empty::default())
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> Result<api::StateResponse> {
        let key = key(&request.id, &request.exec_id)?;
        let state = self.sandbox.state(key).await.map_err(from_error)?;
        Ok(api::StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: state.bundle.to_string_lossy().into_owned(),
            pid: state.pid,
            status: EnumOrUnknown::new(task_status(state.status)),
            terminal: state.terminal,
            exit_status: state.exit.map_or(0, |exit| exit.code),
            exited_at: timestamp(state.exit),
            ..Default::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> Result<api::WaitResponse> {
        let key = key(&request.id, &request.exec_id)?;
        let exit = self.sandbox.wait(key).await.map_err(from_error)?;
        Ok(api::WaitResponse {
            exit_status: exit.code,
            exited_at: timestamp(Some(exit)),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> Result<api::Empty> {
        let key = key(&request.id, &request.exec_id)?;
        let sent = self.sandbox.signal(key, request.signal, request.all).await;
        sent.map_err(from_error)?;
        Ok(api::Empty::default())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> Result<api::Empty> {
        let key = key(&request.id, &request.exec_id)?;
        let resized = self
            .sandbox
            .resize(key, request.width, request.height)
            .await;
        resized.map_err(from_error)?;
        Ok(api::Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> Result<api::Empty> {
        if request.stdin {
            let key = key(&request.id, &request.exec_id)?;
            self.sandbox.close_input(key).await.map_err(from_error)?;
        }
        Ok(api::Empty::default())
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> Result<api::Empty> {
        let paused = self.sandbox.pause(id(&request.id)?).await;
        paused.map_err(from_error)?;
        Ok(api::Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> Result<api::Empty> {
        let resumed = self.sandbox.resume(id(&request.id)?).await;
        resumed.map_err(from_error)?;
        Ok(api::Empty::default())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> Result<api::Empty> {
        let id = id(&request.id)?;
        let resources = request
            .resources
            .into_option()
            .ok_or_else(|| invalid("update without resources"))?;
        let updated = self.sandbox.update(id, resources.value).await;
        updated.map_err(from_error)?;
        Ok(api::Empty::default())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> Result<api::StatsResponse> {
        let files = self
            .sandbox
            .stats(id(&request.id)?)
            .await
            .map_err(from_error)?;
        let stats = metrics::to_any(&files).map_err(internal)?;
        Ok(api::StatsResponse {
            stats: MessageField::some(stats),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> Result<api::PidsResponse> {
        let processes = self
            .sandbox
            .processes(id(&request.id)?)
            .await
            .map_err(from_error)?;
        let infos = processes.into_iter().map(|process| ProcessInfo {
            pid: process.pid,
            ..Default::default()
        });
        Ok(api::PidsResponse {
            processes: infos.collect(),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> Result<api::DeleteResponse> {
        let key = key(&request.id, &request.exec_id)?;
        let pid = self
            .sandbox
            .state(key.clone())
            .await
            .map_err(from_error)?
            .pid;
        let exit = self.sandbox.delete(key, false).await.map_err(from_error)?;
        Ok(api::DeleteResponse {
            pid,
            exit_status: exit.code,
            exited_at: timestamp(Some(exit)),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> Result<api::ConnectResponse> {
        let state = self
            .sandbox
            .state(key(&request.id, "")?)
            .await
            .map_err(from_error)?;
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: state.pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    /// Sent after each container: others may live on.
    async fn shutdown(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownRequest,
    ) -> Result<api::Empty> {
        let when = match request.now {
            true => Stop::Now,
            false => Stop::Without(id(&request.id)?),
        };
        self.sandbox.stop(when).await.map_err(from_error)?;
        Ok(api::Empty::default())
    }
}

/// Streams by path belong to containerd's way of starting a task.
fn only_attached(streams: [&String; 3]) -> Result<()> {
    match streams
        .into_iter()
        .find(|path| !path.is_empty() && *path != ATTACHED)
    {
        Some(path) => Err(invalid(format!(
            "stream {path:?}: only attached streams are supported"
        ))),
        None => Ok(()),
    }
}

fn id(text: &str) -> Result<Id> {
    Id::new(text).map_err(invalid)
}

fn key(container: &str, exec: &str) -> Result<Key> {
    Ok(Key {
        container: id(container)?,
        exec: match exec {
            "" => None,
            exec => Some(id(exec)?),
        },
    })
}

fn task_status(status: Status) -> TaskStatus {
    match status {
        Status::Creating => TaskStatus::UNKNOWN,
        Status::Created => TaskStatus::CREATED,
        Status::Running => TaskStatus::RUNNING,
        Status::Paused => TaskStatus::PAUSED,
        Status::Stopped => TaskStatus::STOPPED,
    }
}

fn timestamp(exit: Option<ExitStatus>) -> MessageField<Timestamp> {
    MessageField::from_option(exit.map(|exit| Timestamp {
        seconds: (exit.at_ns / 1_000_000_000) as i64,
        nanos: (exit.at_ns % 1_000_000_000) as i32,
        ..Default::default()
    }))
}
