//! casemate-agent: PID 1 of a sandbox's VM, and the container runtime in it.
//!
//! ```text
//!  kernel ─► main ─► dial the host ─► boot (file systems) ─► serve ─► power off
//!                                                              │
//!        control connection: server ─► sandbox ─► container::birth ─► fork ─► child
//!        stream connections: streams ◄──pipes, terminals──► the processes
//! ```
//!
//! * The agent has **one thread**, which runs an event loop: a fork copies a
//!   process whose locks are all free, so a [`child`] may do as it likes until
//!   it executes its program. Whatever could block for long (the share's file
//!   system above all) is touched by children only.
//! * The host is the client of one ttrpc connection that the agent opens. When
//!   that ends, the VM has no purpose any more: everything is killed, written
//!   back, and the VM powered off.
//! * Nobody but the host reaches the agent: there is no socket, file or device
//!   of it that a container could open.
//!
//! `casemate-agent --sockets DIR` serves over unix sockets in `DIR` instead of
//! vsock and boots nothing. It expects to be PID 1 of a PID namespace, with a
//! writable `/run` and cgroup v2 at `/sys/fs/cgroup`: the tests' way to run real
//! containers without a VM.

#![forbid(unsafe_code)]

use std::{convert::Infallible, io, path::PathBuf, sync::Arc};

use casemate_protocol::{
    agent_ttrpc::create_agent,
    stream::{answer, read_request},
};
use futures::StreamExt;
use nix::sys::reboot::{RebootMode, reboot};
use tokio::sync::Notify;
use ttrpc::r#async::{Server, transport::Listener as ControlListener};

mod boot;
mod cgroup;
mod child;
mod console;
mod container;
mod control;
mod disks;
mod error;
mod limits;
mod loopback;
mod names;
mod network;
mod quiet;
mod reaper;
mod sandbox;
mod server;
mod shared_memory;
mod streams;
mod timeline;
mod transport;

use console::say;
use control::Control;
use error::{Doing, Result};
use reaper::Reaper;
use sandbox::Sandbox;
use server::Service;
use timeline::Timeline;
use transport::{Connection, Listener, Transport};

fn main() {
    let mut timeline = Timeline::since(0);
    timeline.mark("kernel");
    let transport = match sockets_argument() {
        Some(directory) => Transport::Unix(directory),
        None => Transport::Vsock,
    };
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "start the event loop".into())
        .and_then(|runtime| runtime.block_on(serve(&transport, timeline)));
    if let Err(error) = served {
        say(format_args!("{error}"));
    }
    if matches!(transport, Transport::Vsock) {
        power_off();
    }
}

/// The directory after `--sockets`. The kernel hands its own unknown parameters
/// to init as well, so anything else is left alone.
fn sockets_argument() -> Option<PathBuf> {
    let mut args = std::env::args_os().skip(1);
    match args.next()? == "--sockets" {
        true => args.next().map(PathBuf::from),
        false => None,
    }
}

fn power_off() {
    let Err(errno): std::result::Result<Infallible, _> = reboot(RebootMode::RB_POWER_OFF);
    say(format_args!("power off: {errno}"));
}

/// Serves the host until it is gone, and ends the sandbox.
async fn serve(transport: &Transport, mut timeline: Timeline) -> Result<()> {
    // Dialling needs no file system; the host answers while boot makes some.
    let dialled = transport.dial().doing(|| "connect to the host".into())?;
    let listener = transport.listen().doing(|| "listen for streams".into())?;
    timeline.mark("dial");
    if matches!(transport, Transport::Vsock) {
        boot::leave_initramfs()?;
        quiet::settle();
    }
    boot::make_directories()?;
    timeline.mark("file systems");
    let reaper = Reaper::start().doing(|| "catch SIGCHLD".into())?;
    let sandbox = Arc::new(Sandbox::new(reaper, transport.clone()));
    tokio::spawn(accept_streams(listener, Arc::clone(&sandbox)));
    let connection = dialled
        .answered()
        .await
        .doing(|| "connect to the host".into())?;
    timeline.mark("connect");

    let done = Arc::new(Notify::new());
    let control = Control::new(connection, Arc::clone(&done));
    let service = Service::new(
        Arc::clone(&sandbox),
        timeline.into_spans(),
        Arc::clone(&done),
    );
    // The server's one "listener" has this connection to offer and no other.
    let only = futures::stream::iter([io::Result::Ok(control)]).chain(futures::stream::pending());
    let mut server = Server::new()
        .add_listener(ControlListener::new(only))
        .register_service(create_agent(Arc::new(service)));
    server
        .start()
        .await
        .map_err(io::Error::other)
        .doing(|| "serve".into())?;
    done.notified().await;
    sandbox.end().await;
    Ok(())
}

async fn accept_streams(listener: Listener, sandbox: Arc<Sandbox>) {
    loop {
        match listener.accept().await {
            Ok(connection) => drop(tokio::spawn(attach(connection, Arc::clone(&sandbox)))),
            Err(error) => return say(format_args!("accept a stream: {error}")),
        }
    }
}

/// Connects a stream to the process that its preface names.
async fn attach(mut connection: Connection, sandbox: Arc<Sandbox>) {
    let hello = match read_request(&mut connection).await {
        Ok(hello) => hello,
        Err(error) => return say(format_args!("{error}")),
    };
    if hello.loopback_port != 0 {
        return loopback::join(connection, hello.loopback_port).await;
    }
    let Ok(hangup) = connection.hangup() else {
        return;
    };
    let pump = tokio::select! {
        pump = sandbox.stream(&hello) => pump,
        // The process will not be made.
        () = hangup.happened() => return,
    };
    drop(hangup);
    if answer(&mut connection, pump.is_some()).await.is_ok()
        && let Some(pump) = pump
    {
        pump.run(connection).await;
    }
}
