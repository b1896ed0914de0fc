//! containerd's Sandbox service: a pod whose own container is no task.
//!
//! ```text
//! start ─► CreateSandbox ─► StartSandbox ─► tasks come and go ─► StopSandbox ─► ShutdownSandbox
//!          the VM boots     pause runs      (Task service)       all end        nothing is left
//! ```
//!
//! The pod's own container is the one that the agent plays; what waits for the
//! pod waits for it.

mod end;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use casemate_sandbox::{
    CgroupFiles, Create, Error, ExitStatus, Handle, Key, Stop,
    neighbours::Neighbours,
    spec::{LiveHost, Split},
    state::Status,
};
use containerd_shim_protos::{
    protobuf::MessageField, sandbox_api as api, sandbox_async::Sandbox, types::platform::Platform,
};
use tokio::sync::{mpsc, oneshot};
use ttrpc::{Code, Result, asynchronous::TtrpcContext};

use crate::{
    containerd::{Addresses, Arrival, Door, Pod, What},
    metrics, pod_metrics,
    status::{from_error, from_refusal, internal, invalid, timestamp},
};

/// A pod that is to begin, and where its beginning is awaited.
pub struct Order {
    /// What it is made from.
    pub pod: Pod,
    /// For the answer.
    pub reply: oneshot::Sender<std::result::Result<Split, Error>>,
}

/// Where orders go: to who can begin a sandbox.
pub type Orders = mpsc::Sender<Order>;

pub(crate) struct SandboxService {
    sandbox: Handle,
    door: Arc<Door>,
    orders: Orders,
    phase: Mutex<Phase>,
}

/// How far the pod has come; what comes after that is known by its container.
enum Phase {
    /// There is none.
    Empty,
    /// One is being made.
    Creating,
    /// Its machine boots or runs; its container is made from the second, once.
    Created(Begun, Option<Box<Create>>),
}

/// When it was created.
type Begun = ExitStatus;

impl SandboxService {
    pub(crate) fn new(sandbox: Handle, door: Arc<Door>, orders: Orders) -> Self {
        Self {
            sandbox,
            door,
            orders,
            phase: Mutex::new(Phase::Empty),
        }
    }

    /// The pod's own container, if the pod is the one that is meant.
    fn pod(&self, id: &str) -> Result<Key> {
        let own = self.door.id();
        match own.as_str() == id {
            true => Ok(Key::init(own.clone())),
            false => Err(refused(
                Code::NOT_FOUND,
                format!("sandbox {id:?} does not exist; this is {:?}", own.as_str()),
            )),
        }
    }

    /// Moves on, when `step` allows it.
    fn step<T>(&self, step: impl FnOnce(&mut Phase) -> Result<T>) -> Result<T> {
        // It is whole between any two statements.
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        step(&mut phase)
    }

    /// When the pod was created, if it was.
    fn begun(&self) -> Option<Begun> {
        let begun = self.step(|phase| {
            Ok(match phase {
                Phase::Empty | Phase::Creating => None,
                Phase::Created(begun, _) => Some(*begun),
            })
        });
        begun.ok().flatten()
    }

    async fn order(&self, pod: Pod) -> Result<Create> {
        let id = self.door.id().clone();
        let bundle = pod.bundle.clone();
        let (reply, answer) = oneshot::channel();
        let sent = self.orders.send(Order { pod, reply }).await;
        sent.map_err(|_| from_error(Error::Closing))?;
        let begun = answer.await.map_err(|_| from_error(Error::Closing))?;
        Ok(Create {
            id,
            bundle,
            rootfs: Vec::new(),
            split: Some(Box::new(begun.map_err(from_error)?)),
        })
    }

    async fn run(&self, create: Create) -> Result<u32> {
        let key = Key::init(create.id.clone());
        let arrival = Arrival {
            key: key.clone(),
            addresses: Addresses::default(),
            what: What::Bundle(&create.bundle),
        };
        let admitted = self.door.admit(&self.sandbox, arrival).await;
        let admission = admitted.map_err(from_refusal)?;
        let pid = self.sandbox.create(create).await.map_err(from_error)?;
        admission.keep();
        self.sandbox.start(key).await.map_err(from_error)?;
        Ok(pid)
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> Result<api::CreateSandboxResponse> {
        let key = self.pod(&request.sandbox_id)?;
        let neighbours = Neighbours::under(self.door.root());
        let pod = Pod::new(&key.container, &request, &LiveHost(&neighbours)).map_err(invalid)?;
        self.step(|phase| match phase {
            Phase::Empty => {
                *phase = Phase::Creating;
                Ok(())
            }
            _ => Err(refused(
                Code::ALREADY_EXISTS,
                "the sandbox has been created",
            )),
        })?;
        let created = self.order(pod).await;
        self.step(|phase| {
            let (next, answer) = match created {
                Ok(create) => (
                    Phase::Created(ExitStatus::now(0), Some(Box::new(create))),
                    Ok(api::CreateSandboxResponse::new()),
                ),
                Err(error) => (Phase::Empty, Err(error)),
            };
            *phase = next;
            answer
        })
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> Result<api::StartSandboxResponse> {
        self.pod(&request.sandbox_id)?;
        let (begun, create) = self.step(|phase| match phase {
            Phase::Empty | Phase::Creating => Err(not_created()),
            Phase::Created(begun, create) => {
                let create = create.take().ok_or_else(|| {
                    refused(Code::FAILED_PRECONDITION, "the sandbox has been started")
                })?;
                Ok((*begun, create))
            }
        })?;
        Ok(api::StartSandboxResponse {
            pid: self.run(*create).await?,
            created_at: timestamp(Some(begun)),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: api::PlatformRequest,
    ) -> Result<api::PlatformResponse> {
        self.pod(&request.sandbox_id)?;
        Ok(api::PlatformResponse {
            platform: MessageField::some(Platform {
                os: "linux".to_owned(),
                architecture: architecture(std::env::consts::ARCH).to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> Result<api::StopSandboxResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        if self.begun().is_some() {
            let patience = Duration::from_secs(request.timeout_secs.into());
            self.end(&pod, patience).await?;
        }
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> Result<api::WaitSandboxResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        self.begun().ok_or_else(not_created)?;
        let exit = self.sandbox.wait(pod).await.map_err(from_error)?;
        Ok(api::WaitSandboxResponse {
            exit_status: exit.code,
            exited_at: timestamp(Some(exit)),
            ..Default::default()
        })
    }

    /// Answered as long as this process lives: containerd takes every failure
    /// for one of its own.
    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> Result<api::SandboxStatusResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        let state = self.sandbox.state(pod).await.ok();
        let alive = state
            .as_ref()
            .filter(|state| is_ready(state.status))
            .map(|state| state.pid);
        let info = match request.verbose {
            true => [("casemate".to_owned(), self.door.describe())].into(),
            false => Default::default(),
        };
        Ok(api::SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: alive.unwrap_or(0),
            // As the CRI names its states.
            state: match alive {
                Some(_) => "SANDBOX_READY",
                None => "SANDBOX_NOTREADY",
            }
            .to_owned(),
            info,
            created_at: timestamp(self.begun()),
            exited_at: timestamp(state.and_then(|state| state.exit)),
            ..Default::default()
        })
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PingRequest,
    ) -> Result<api::PingResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        self.begun().ok_or_else(not_created)?;
        let state = self.sandbox.state(pod).await.map_err(from_error)?;
        match is_ready(state.status) {
            true => Ok(api::PingResponse::new()),
            false => Err(refused(Code::UNAVAILABLE, "the sandbox has ended")),
        }
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> Result<api::ShutdownSandboxResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        if self.begun().is_some() {
            let removed = async {
                self.end(&pod, Duration::ZERO).await?;
                self.remove_all().await
            };
            if let Err(error) = removed.await {
                tracing::warn!(%error, "containers are left to the end of the sandbox");
            }
        }
        self.sandbox.stop(Stop::Now).await.map_err(from_error)?;
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: api::SandboxMetricsRequest,
    ) -> Result<api::SandboxMetricsResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        self.begun().ok_or_else(not_created)?;
        let own = self.sandbox.stats(pod.container.clone()).await;
        let mut sum: CgroupFiles = own.map_err(from_error)?;
        let containers = self.sandbox.containers().await.map_err(from_error)?;
        for id in containers.into_keys().filter(|id| *id != pod.container) {
            // One that has ended uses nothing.
            if let Ok(files) = self.sandbox.stats(id).await {
                pod_metrics::add(&mut sum, &files);
            }
        }
        let mut response = api::SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.id = request.sandbox_id;
        metric.timestamp = timestamp(Some(ExitStatus::now(0)));
        metric.data = MessageField::some(
            metrics::to_any(&sum, metrics::Version::of_host()).map_err(internal)?,
        );
        Ok(response)
    }
}

/// It can take containers.
fn is_ready(status: Status) -> bool {
    matches!(status, Status::Running | Status::Paused)
}

/// As Go names it, which containerd compares with.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn not_created() -> ttrpc::Error {
    refused(
        Code::FAILED_PRECONDITION,
        "the sandbox has not been created",
    )
}

fn refused(code: Code, text: impl std::fmt::Display) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
}
