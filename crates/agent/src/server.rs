//! The Agent service: from ttrpc's calls to the sandbox. Texts and codes of
//! refusals are in [`crate::error`].

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use casemate_protocol::{
    agent::{
        AddProcessRequest, AddProcessResponse, AwaitOutOfMemoryResponse, ContainerRef,
        ContainerStatsResponse, CreateContainerRequest, CreateContainerResponse, Empty,
        FreezeContainerRequest, HelloRequest, HelloResponse, ListProcessesResponse,
        PrepareSandboxRequest, PrepareSandboxResponse, ProcessRef, ResizeTerminalRequest,
        SignalProcessRequest, Span, StartProcessResponse, UpdateContainerRequest,
        UpdateNetworkRequest, UpdateNetworkResponse, WaitProcessResponse,
    },
    agent_ttrpc, negotiate,
};
use nix::sys::utsname::uname;
use ttrpc::r#async::TtrpcContext;

use crate::{
    cgroup,
    error::{Doing, Error, Result},
    limits,
    sandbox::Sandbox,
    session::Ending,
    timeline::now,
};

/// The service on the one control connection.
pub(crate) struct Service {
    sandbox: Arc<Sandbox>,
    /// What has happened until the service began.
    boot: Vec<Span>,
    greeted: AtomicBool,
    /// A VM that is about to be saved does nothing more for this connection.
    template: AtomicBool,
    ending: Arc<Ending>,
}

impl Service {
    pub(crate) fn new(sandbox: Arc<Sandbox>, boot: Vec<Span>, ending: Arc<Ending>) -> Self {
        Self {
            sandbox,
            boot,
            greeted: AtomicBool::new(false),
            template: AtomicBool::new(false),
            ending,
        }
    }

    /// The sandbox, once host and agent have agreed on a version.
    fn sandbox(&self) -> Result<Arc<Sandbox>> {
        if !self.greeted.load(Ordering::Relaxed) {
            return Err(Error::NotGreeted);
        }
        if self.template.load(Ordering::Relaxed) {
            return Err(Error::Template);
        }
        Ok(Arc::clone(&self.sandbox))
    }
}

/// Runs a change to its end even when its caller gives up waiting: a container
/// must not be left half made.
async fn complete<T: Send + 'static>(
    change: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(change)
        .await
        .map_err(std::io::Error::other)
        .doing(|| "complete the request".into())?
}

#[async_trait]
impl agent_ttrpc::Agent for Service {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        let version = negotiate(request.min_version, request.max_version).map_err(Error::from)?;
        let system = uname().doing(|| "uname".into())?;
        self.greeted.store(true, Ordering::Relaxed);
        Ok(HelloResponse {
            version,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: system.release().to_string_lossy().into_owned(),
            spans: self.boot.clone(),
            now_ns: now(),
            ..Default::default()
        })
    }

    async fn become_template(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        let device = self.sandbox()?.get_ahead()?;
        self.template.store(true, Ordering::Relaxed);
        self.ending.is_for_template(device);
        self.ending.soon();
        Ok(Empty::new())
    }

    async fn prepare_sandbox(
        &self,
        _: &TtrpcContext,
        request: PrepareSandboxRequest,
    ) -> ttrpc::Result<PrepareSandboxResponse> {
        let (identity, spans) = complete(self.sandbox()?.prepare(request)).await?;
        Ok(PrepareSandboxResponse {
            spans,
            identity: Some(identity).into(),
            ..Default::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let (pid, spans) = complete(self.sandbox()?.create(request)).await?;
        Ok(CreateContainerResponse {
            pid,
            spans,
            ..Default::default()
        })
    }

    async fn add_process(
        &self,
        _: &TtrpcContext,
        request: AddProcessRequest,
    ) -> ttrpc::Result<AddProcessResponse> {
        let (pid, spans) = complete(self.sandbox()?.add(request)).await?;
        Ok(AddProcessResponse {
            pid,
            spans,
            ..Default::default()
        })
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRef,
    ) -> ttrpc::Result<StartProcessResponse> {
        let spans = complete(self.sandbox()?.start(request)).await?;
        Ok(StartProcessResponse {
            spans,
            ..Default::default()
        })
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRef,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let (container, process) = self.sandbox()?.process(&request)?;
        Ok(process.wait(&container).await)
    }

    async fn await_out_of_memory(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<AwaitOutOfMemoryResponse> {
        let container = self.sandbox()?.container(&request.container_id)?;
        Ok(AwaitOutOfMemoryResponse {
            killed: container.out_of_memory().await?,
            ..Default::default()
        })
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let signal = limits::signal(request.signal)?;
        let of = ProcessRef {
            container_id: request.container_id,
            exec_id: request.exec_id,
            ..Default::default()
        };
        let (container, process) = self.sandbox()?.process(&of)?;
        match request.all {
            true => container.signal_all(signal)?,
            false => process.signal(signal)?,
        }
        Ok(Empty::new())
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<Empty> {
        let (columns, rows) = limits::size(request.columns, request.rows)?;
        let of = ProcessRef {
            container_id: request.container_id,
            exec_id: request.exec_id,
            ..Default::default()
        };
        let (_, process) = self.sandbox()?.process(&of)?;
        process.resize(columns, rows)?;
        Ok(Empty::new())
    }

    async fn freeze_container(
        &self,
        _: &TtrpcContext,
        request: FreezeContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.sandbox()?.container(&request.container_id)?;
        container.cgroup.freeze(request.frozen).await?;
        Ok(Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        cgroup::validate_settings(&request.settings)?;
        let container = self.sandbox()?.container(&request.container_id)?;
        container.cgroup.change(&request.settings)?;
        Ok(Empty::new())
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        let container = self.sandbox()?.container(&request.container_id)?;
        Ok(ContainerStatsResponse {
            files: container.cgroup.stats()?,
            ..Default::default()
        })
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let container = self.sandbox()?.container(&request.container_id)?;
        Ok(container.list()?)
    }

    async fn remove_process(&self, _: &TtrpcContext, request: ProcessRef) -> ttrpc::Result<Empty> {
        let container = self.sandbox()?.container(&request.container_id)?;
        container.forget(&request.exec_id)?;
        Ok(Empty::new())
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<Empty> {
        complete(self.sandbox()?.remove(request.container_id)).await?;
        Ok(Empty::new())
    }

    async fn update_network(
        &self,
        _: &TtrpcContext,
        request: UpdateNetworkRequest,
    ) -> ttrpc::Result<UpdateNetworkResponse> {
        let spans = complete(self.sandbox()?.update_network(request)).await?;
        Ok(UpdateNetworkResponse {
            spans,
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.sandbox()?.end().await;
        self.ending.soon();
        Ok(Empty::new())
    }
}
