//! The agent of a machine that does not exist.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use casemate_protocol::{HOST_CONTROL_PORT, agent as message, agent_ttrpc};
use tokio::{net::UnixStream, sync::watch};
use ttrpc::{Code, asynchronous::TtrpcContext};

/// What the guest does first: it calls the host.
/// One after the other do so, each where nobody has called before.
pub(crate) async fn call_the_host(directory: PathBuf, agent: Arc<FakeAgent>) {
    let socket = directory.join(format!("vsock/vm.vsock_{HOST_CONTROL_PORT}"));
    let calls = futures::stream::unfold((0, Arc::clone(&agent)), move |(called, agent)| {
        let socket = socket.clone();
        async move {
            let (mut called, mut connection) = call(&socket, called).await;
            while agent.fails() {
                (called, connection) = call(&socket, called).await;
            }
            Some((io::Result::Ok(connection), (called, agent)))
        }
    });
    let listener = ttrpc::asynchronous::transport::Listener::new(Box::pin(calls));
    let mut server = ttrpc::asynchronous::Server::new()
        .add_listener(listener)
        .register_service(agent_ttrpc::create_agent(agent));
    server.start().await.expect("the agent serves");
    std::future::pending::<()>().await;
}

/// Calls a socket that is not the one with this inode.
async fn call(socket: &Path, called: u64) -> (u64, UnixStream) {
    loop {
        let inode = fs::metadata(socket).map_or(called, |file| file.ino());
        if inode != called
            && let Ok(connection) = UnixStream::connect(socket).await
        {
            return (inode, connection);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// An agent some of whose answers are failures.
pub(crate) struct FakeAgent {
    pub(crate) taken: AtomicU32,
    failing: Vec<u32>,
    /// The containers that were killed.
    killed: watch::Sender<Vec<String>>,
}

impl FakeAgent {
    pub(crate) fn failing_at(steps: &[u32]) -> Self {
        Self {
            taken: AtomicU32::new(0),
            failing: steps.to_vec(),
            killed: watch::Sender::default(),
        }
    }

    fn fails(&self) -> bool {
        let step = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        self.failing.contains(&step)
    }

    fn answer<T: Default>(&self) -> ttrpc::Result<T> {
        match self.fails() {
            true => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                Code::INTERNAL,
                "on purpose",
            ))),
            false => Ok(T::default()),
        }
    }
}

/// Requests whose answer says nothing.
macro_rules! plain {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        #[async_trait]
        impl agent_ttrpc::Agent for FakeAgent {
            $(
                async fn $name(&self, _: &TtrpcContext, _: message::$request) -> ttrpc::Result<message::$response> {
                    self.answer()
                }
            )*

            async fn hello(&self, _: &TtrpcContext, _: message::HelloRequest) -> ttrpc::Result<message::HelloResponse> {
                let answer: message::HelloResponse = self.answer()?;
                Ok(message::HelloResponse { version: 1, ..answer })
            }

            async fn prepare_sandbox(&self, _: &TtrpcContext, request: message::PrepareSandboxRequest) -> ttrpc::Result<message::PrepareSandboxResponse> {
                let answer = self.answer()?;
                Ok(message::PrepareSandboxResponse { identity: Some(identity(request)).into(), ..answer })
            }

            async fn await_out_of_memory(&self, _: &TtrpcContext, container: message::ContainerRef) -> ttrpc::Result<message::AwaitOutOfMemoryResponse> {
                let mut killed = self.killed.subscribe();
                let _ = killed.wait_for(|killed| killed.contains(&container.container_id)).await;
                Ok(message::AwaitOutOfMemoryResponse::default())
            }

            async fn wait_process(&self, _: &TtrpcContext, process: message::ProcessRef) -> ttrpc::Result<message::WaitProcessResponse> {
                let answer: message::WaitProcessResponse = self.answer()?;
                let mut killed = self.killed.subscribe();
                let _ = killed.wait_for(|killed| killed.contains(&process.container_id)).await;
                Ok(message::WaitProcessResponse { exit_status: 137, ..answer })
            }

            async fn signal_process(&self, _: &TtrpcContext, request: message::SignalProcessRequest) -> ttrpc::Result<message::Empty> {
                let answer = self.answer()?;
                self.killed.send_modify(|killed| killed.push(request.container_id));
                Ok(answer)
            }
        }
    };
}

plain! {
    become_template(Empty) -> Empty;
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    update_network(UpdateNetworkRequest) -> UpdateNetworkResponse;
    start_process(ProcessRef) -> StartProcessResponse;
    remove_container(ContainerRef) -> Empty;
    shutdown(Empty) -> Empty;
}

/// Everything is as it was asked for.
fn identity(request: message::PrepareSandboxRequest) -> message::Identity {
    message::Identity {
        entropy_bits: 8 * request.entropy.len() as u32,
        boot_id: fs::read_to_string("/proc/sys/kernel/random/uuid")
            .expect("every Linux has it")
            .trim()
            .to_owned(),
        machine_id: request.machine_id,
        hostname: request.hostname,
        realtime_ns: request.realtime_ns,
        // The machine is this process's.
        cid: 3 + u64::from(std::process::id()),
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        ..Default::default()
    }
}
