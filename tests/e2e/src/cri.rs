//! A client of the Container Runtime Interface: what a kubelet does with
//! containerd, in calls that wait.
//!
//! [`Cri::pod`] builds and runs a [`Pod`], [`Pod::container`] a [`Container`]
//! in it; streams are a [`Session`]. What the builders have no word for is set
//! in the message itself ([`PodBuilder::edit`], [`ContainerBuilder::edit`]).

mod container;
mod grpc;
mod logs;
mod pod;
mod session;
mod spdy;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use protobuf::Message;

use crate::containerd::Containerd;
use crate::host::Host;
use crate::images::{BUSYBOX, PAUSE};
use crate::network::{http_get, inside};
use crate::wait::until_true;
pub use container::{Container, ContainerBuilder};
pub use grpc::Refusal;
pub use logs::Line;
pub use pod::{Pod, PodBuilder};
pub use session::{Ended, Session, Wanted};

/// The interface's messages, from `proto/cri.proto`.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    reason = "generated"
)]
pub mod messages {
    mod generated {
        include!(concat!(env!("OUT_DIR"), "/cri/mod.rs"));
    }
    pub use generated::cri::*;
}

use messages::{Empty, ListContainersResponse, ListPodSandboxResponse, VersionResponse};

/// How long a call may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The namespace in which containerd keeps what came by this interface.
pub const NAMESPACE: &str = "k8s.io";

/// A client of one engine.
pub struct Cri<'h> {
    /// The machine on which it runs.
    pub host: &'h Host,
    socket: PathBuf,
    /// The network namespace in which the engine's server of streams listens.
    network: PathBuf,
    handler: String,
}

impl<'h> Cri<'h> {
    /// The client of this engine, which is given the image for pods and BusyBox.
    pub fn of(containerd: &Containerd<'h>) -> Result<Cri<'h>> {
        for image in [PAUSE, BUSYBOX] {
            containerd.import(NAMESPACE, image)?;
        }
        let cri = Cri {
            host: containerd.host,
            socket: containerd.socket(),
            network: containerd.network(),
            handler: containerd.handler(),
        };
        cri.ready()?;
        Ok(cri)
    }

    /// The same with another runtime's name for its pods.
    pub fn with_handler(mut self, handler: String) -> Cri<'h> {
        self.handler = handler;
        self
    }

    /// Waits until an engine that was started serves the interface.
    pub fn ready(&self) -> Result<()> {
        until_true("the runtime service", LIMIT, || {
            let version: Result<VersionResponse> = self.runtime("Version", &Empty::new());
            Ok(version.is_ok())
        })
    }

    /// A pod of the scenario's runtime.
    pub fn pod(&self, name: &str) -> PodBuilder<'_, 'h> {
        PodBuilder::new(self, name)
    }

    /// Calls a method of the runtime service.
    pub fn runtime<A: Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        self.call("RuntimeService", method, request)
    }

    /// Calls a method of the image service.
    pub fn image<A: Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        self.call("ImageService", method, request)
    }

    fn call<A: Message>(&self, service: &str, method: &str, request: &impl Message) -> Result<A> {
        let path = format!("runtime.v1.{service}/{method}");
        let answer = grpc::call(&self.socket, &path, request, LIMIT);
        if let Err(error) = &answer {
            self.host.note(format!("{error:#}"));
        }
        answer
    }

    /// What a web server says that can be reached from where the engine is.
    pub fn fetch(&self, address: &str) -> Result<String> {
        inside(&self.network, || http_get(address))
    }

    /// Ids of pods and containers that there are.
    pub fn all(&self) -> Result<Vec<String>> {
        let pods: ListPodSandboxResponse = self.runtime("ListPodSandbox", &Empty::new())?;
        let containers: ListContainersResponse = self.runtime("ListContainers", &Empty::new())?;
        let pods = pods.items.into_iter().map(|pod| pod.id);
        let containers = containers.containers.into_iter();
        Ok(pods
            .chain(containers.map(|container| container.id))
            .collect())
    }

    /// Demands that no pod and no container is left.
    pub fn nothing_left(&self) -> Result<()> {
        let left = self.all()?;
        ensure!(left.is_empty(), "pods or containers are left: {left:?}");
        Ok(())
    }
}

/// What a service said no with: code and reason.
pub fn refusal<T>(outcome: Result<T>) -> Result<Refusal> {
    match outcome {
        Ok(_) => anyhow::bail!("a refusal was expected"),
        Err(error) => error.downcast::<Refusal>(),
    }
}
