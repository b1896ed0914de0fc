//! The control interface of a sandbox: containerd's Task service, the small
//! Monitor service beside it, and for a pod of its own containerd's Sandbox
//! service, on one unix socket.
//!
//! All are thin: they translate between messages and a
//! [`casemate_sandbox::Handle`]. containerd speaks to the shim and the command
//! line to the monitor in the same words, so there is one implementation.

#![forbid(unsafe_code)]

pub mod containerd;
mod metrics;
mod monitor;
mod pod_metrics;
mod sandbox;
mod status;
mod task;

pub use sandbox::{Order, Orders};
pub use task::ATTACHED;

use std::{collections::HashMap, io, sync::Arc};

use casemate_protocol::monitor_ttrpc::create_monitor;
use casemate_sandbox::Handle;
use containerd::Door;
use containerd_shim_protos::{sandbox_async::create_sandbox, shim_async::create_task};
use futures::stream;
use tokio::net::UnixListener;
use ttrpc::asynchronous::{Server, Service, transport::Listener};

/// Name of the control socket in a sandbox's directory.
pub const CONTROL_SOCKET: &str = "monitor.sock";

/// The Task service under the names of both its versions; the messages are the
/// same.
const TASK_V3: &str = "containerd.task.v3.Task";
const TASK_V2: &str = "containerd.task.v2.Task";

/// Serves a sandbox on a listening socket, until the server is dropped or shut
/// down. With a door, containerd's way of making processes is understood as well,
/// and with somebody who takes orders, its way of making a pod.
///
/// # Errors
/// When the socket cannot be used.
pub async fn serve(
    listener: UnixListener,
    handle: Handle,
    door: Option<Arc<Door>>,
    orders: Option<Orders>,
) -> io::Result<Server> {
    let connections = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(connection, _)| connection);
        Some((accepted, listener))
    });
    let mut server = Server::new()
        .add_listener(Listener::new(connections))
        .register_service(services(&handle, door.as_ref()));
    if let (Some(door), Some(orders)) = (door, orders) {
        let service = sandbox::SandboxService::new(handle, door, orders);
        server = server.register_service(create_sandbox(Arc::new(service)));
    }
    server.start().await.map_err(io::Error::other)?;
    Ok(server)
}

fn services(handle: &Handle, door: Option<&Arc<Door>>) -> HashMap<String, Service> {
    let task = || {
        create_task(Arc::new(task::TaskService::new(
            handle.clone(),
            door.cloned(),
        )))
    };
    let mut services = task();
    if let Some(service) = task().remove(TASK_V3) {
        services.insert(TASK_V2.to_owned(), service);
    }
    services.extend(create_monitor(Arc::new(monitor::MonitorService::new(
        handle.clone(),
    ))));
    services
}
