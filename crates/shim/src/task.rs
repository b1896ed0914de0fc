//! containerd's Task service over a sandbox.
//!
//! A client that has attached stand-in and streams beforehand (the command
//! line) says so in their place; another names the streams, and the [`Door`]
//! lets its processes in.

mod messages;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use casemate_sandbox::{
    Create, Error, Handle, Id, Key, Stop,
    policy::{self, Operation, Refusal},
    state::Status,
};
use containerd_shim_protos::{
    api,
    protobuf::{EnumOrUnknown, MessageField},
    shim_async::Task,
    types::task::ProcessInfo,
};
use messages::{created, id, info, key, root_mount, task_status};
use ttrpc::{Code, Result, asynchronous::TtrpcContext};

use crate::{
    containerd::{Addresses, Arrival, Door, What},
    metrics,
    status::{from_error, from_refusal, internal, invalid, timestamp, unsupported},
};

/// In place of a path in Create and Exec: the stream's descriptor came over the
/// attach socket.
pub const ATTACHED: &str = "attached";

pub(crate) struct TaskService {
    sandbox: Handle,
    door: Option<Arc<Door>>,
    metrics: metrics::Version,
}

impl TaskService {
    pub(crate) fn new(sandbox: Handle, door: Option<Arc<Door>>) -> Self {
        Self {
            sandbox,
            door,
            metrics: metrics::Version::of_host(),
        }
    }

    /// The door for a process with these streams; none when they have been
    /// attached.
    fn door(&self, addresses: &Addresses) -> Result<Option<&Door>> {
        let all = [&addresses.stdin, &addresses.stdout, &addresses.stderr];
        if all.into_iter().any(|address| address == ATTACHED) {
            return Ok(None);
        }
        match (
            &self.door,
            all.into_iter().find(|address| !address.is_empty()),
        ) {
            (Some(door), _) => Ok(Some(door)),
            (None, None) => Ok(None),
            (None, Some(address)) => Err(invalid(format!(
                "stream {address:?}: only attached streams are supported"
            ))),
        }
    }

    /// The process of a container that has ended and was not deleted. A containerd
    /// from 1.7 on that is started anew takes a task without processes for one that
    /// never began, and forgets its exit code.
    async fn unreaped(&self, id: &Id) -> Result<Option<ProcessInfo>> {
        let state = self.sandbox.state(Key::init(id.clone()));
        let state = state.await.map_err(from_error)?;
        let ended = state.status == Status::Stopped;
        Ok(ended.then(|| ProcessInfo {
            pid: state.pid,
            ..Default::default()
        }))
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> Result<api::CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(unsupported("restoring from a checkpoint is not supported"));
        }
        let id = id(&request.id)?;
        let bundle = PathBuf::from(&request.bundle);
        let addresses = Addresses {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let addresses = addresses.of_process(request.terminal);
        let door = self.door(&addresses)?;
        let admission = match door {
            None => None,
            Some(door) => {
                let arrival = Arrival {
                    key: Key::init(id.clone()),
                    addresses,
                    what: What::Bundle(&bundle),
                };
                let admitted = door.admit(&self.sandbox, arrival).await;
                Some(admitted.map_err(from_refusal)?)
            }
        };
        let create = Create {
            id,
            bundle,
            rootfs: request.rootfs.iter().map(root_mount).collect(),
            split: None,
        };
        let pid = self.sandbox.create(create).await.map_err(from_error)?;
        if let (Some(door), Some(admission)) = (door, admission) {
            admission.keep();
            door.created(created(request, pid));
        }
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
        if let (Some(door), true) = (&self.door, key.exec.is_some())
            && let Some(stdio) = door.streams(&key).await.map_err(from_refusal)?
        {
            let supplied = self.sandbox.supply(key.clone(), stdio).await;
            supplied.map_err(from_error)?;
        }
        let pid = self.sandbox.start(key).await.map_err(from_error)?;
        Ok(api::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> Result<api::Empty> {
        if request.exec_id.is_empty() {
            return Err(invalid("exec without an id"));
        }
        let key = key(&request.id, &request.exec_id)?;
        let process = request.spec.into_option();
        let process = process
            .ok_or_else(|| invalid("exec without a process"))?
            .value;
        let addresses = Addresses {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let addresses = addresses.of_process(request.terminal);
        let Some(door) = self.door(&addresses)? else {
            let added = self.sandbox.exec(key, process).await;
            return added.map(|()| api::Empty::default()).map_err(from_error);
        };
        // Nobody is let in for a container that is not there.
        let container = Key::init(key.container.clone());
        let status = self
            .sandbox
            .state(container)
            .await
            .map_err(from_error)?
            .status;
        // The command line may wait for the container to go on; a client of
        // containerd would wait without knowing why.
        let allowed = match status {
            Status::Paused => Err(Refusal::Paused),
            status => policy::allow(Operation::Exec, status),
        };
        allowed.map_err(|refusal| from_error(refusal.into()))?;
        let arrival = Arrival {
            key: key.clone(),
            addresses,
            what: What::Process(&process),
        };
        let admission = door
            .admit(&self.sandbox, arrival)
            .await
            .map_err(from_refusal)?;
        self.sandbox
            .exec(key.clone(), process)
            .await
            .map_err(from_error)?;
        admission.keep();
        door.exec_added(key);
        Ok(api::Empty::default())
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> Result<api::StateResponse> {
        let key = key(&request.id, &request.exec_id)?;
        let addresses = self.door.as_ref().map(|door| door.addresses(&key));
        let Addresses {
            stdin,
            stdout,
            stderr,
        } = addresses.unwrap_or_default();
        let state = self.sandbox.state(key).await.map_err(from_error)?;
        Ok(api::StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            stdin,
            stdout,
            stderr,
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
        match sent {
            // containerd takes what has ended for something that is not there.
            Err(Error::Refused(refusal @ Refusal::NotRunning)) => Err(ttrpc::Error::RpcStatus(
                ttrpc::get_status(Code::NOT_FOUND, refusal),
            )),
            other => other.map(|()| api::Empty::default()).map_err(from_error),
        }
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
            let door = self.door.as_ref();
            // What was written before is still read.
            if !door.is_some_and(|door| door.end_input(&key)) {
                self.sandbox.close_input(key).await.map_err(from_error)?;
            }
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
        let stats = metrics::to_any(&files, self.metrics).map_err(internal)?;
        Ok(api::StatsResponse {
            stats: MessageField::some(stats),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> Result<api::PidsResponse> {
        let id = id(&request.id)?;
        let door = self.door.as_ref();
        if door.is_some()
            && let Some(ended) = self.unreaped(&id).await?
        {
            return Ok(api::PidsResponse {
                processes: vec![ended],
                ..Default::default()
            });
        }
        let processes = self.sandbox.processes(id).await.map_err(from_error)?;
        let hosts = door.is_some_and(|door| door.wants_host_pids());
        let infos = processes.iter().filter_map(|process| info(process, hosts));
        Ok(api::PidsResponse {
            processes: infos.collect::<Result<_>>()?,
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> Result<api::DeleteResponse> {
        let key = key(&request.id, &request.exec_id)?;
        let state = self.sandbox.state(key.clone()).await.map_err(from_error)?;
        if self.door.is_some() && state.status == Status::Creating {
            // To containerd there is none before it is made.
            return Err(from_error(Error::NotFound));
        }
        let pid = state.pid;
        let deleted = self.sandbox.delete(key.clone(), false).await;
        let exit = deleted.map_err(from_error)?;
        if let Some(door) = &self.door {
            door.forget(&key);
            if key.exec.is_none() {
                door.deleted(key, pid, exit);
            }
        }
        Ok(api::DeleteResponse {
            pid,
            exit_status: exit.code,
            exited_at: timestamp(Some(exit)),
            ..Default::default()
        })
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: api::CheckpointTaskRequest,
    ) -> Result<api::Empty> {
        Err(unsupported(format!(
            "container {:?}: a container in a virtual machine cannot be checkpointed; `pause` \
             holds it as it is",
            request.id
        )))
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
            false => {
                let id = id(&request.id)?;
                // containerd may say so of a container that it has not deleted; one
                // that is still being made nobody waits for any more.
                let asked = self.sandbox.state(Key::init(id.clone())).await;
                let is_there = asked.is_ok_and(|state| state.status != Status::Creating);
                if self.door.is_some() && is_there {
                    return Ok(api::Empty::default());
                }
                Stop::Without(id)
            }
        };
        self.sandbox.stop(when).await.map_err(from_error)?;
        Ok(api::Empty::default())
    }
}
