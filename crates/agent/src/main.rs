//! casemate-agent: PID 1 of a sandbox's VM, and the container runtime in it.
//!
//! ```text
//!  kernel ─► main ─► dial the host ─► boot (file systems) ─► session ─► power off
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
//!   back, and the VM powered off. Only a VM that is to be saved waits for
//!   another vsock device and calls again ([`session`]).
//! * Nobody but the host reaches the agent: there is no socket, file or device
//!   of it that a container could open.
//!
//! `casemate-agent --sockets DIR` serves over unix sockets in `DIR` instead of
//! vsock and boots nothing. It expects to be PID 1 of a PID namespace, with a
//! writable `/run` and cgroup v2 at `/sys/fs/cgroup`: the tests' way to run real
//! containers without a VM.

#![forbid(unsafe_code)]

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use nix::sys::reboot::{RebootMode, reboot};

mod ahead;
mod arrival;
mod boot;
mod capacity;
mod cgroup;
mod child;
mod console;
mod container;
mod control;
mod disks;
mod error;
mod identity;
mod limits;
mod loopback;
mod names;
mod network;
mod quiet;
mod reaper;
mod sandbox;
mod server;
mod session;
mod share;
mod shared_memory;
mod streams;
mod timeline;
mod transport;

use console::say;
use error::{Doing, Result};
use reaper::Reaper;
use sandbox::Sandbox;
use session::End;
use timeline::Timeline;
use transport::Transport;

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

/// Serves the host until it is gone for good, and ends the sandbox.
async fn serve(transport: &Transport, mut timeline: Timeline) -> Result<()> {
    // Dialling needs no file system; the host answers while boot makes some.
    let dialled = transport.dial();
    timeline.mark("dial");
    if matches!(transport, Transport::Vsock) {
        boot::leave_initramfs()?;
        quiet::settle();
    }
    boot::make_directories()?;
    timeline.mark("file systems");
    let reaper = Reaper::start().doing(|| "catch SIGCHLD".into())?;
    let sandbox = Arc::new(Sandbox::new(reaper, transport.clone()));
    let mut call = match dialled {
        // The device is yet to be plugged.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            sandbox.put_off(transport.arrived(None).await?);
            timeline.mark("device");
            transport.dial()
        }
        dialled => dialled,
    };
    loop {
        let dialled = call.doing(|| "connect to the host".into())?;
        let End::Template { device } =
            session::serve(dialled, transport, &sandbox, timeline).await?
        else {
            break;
        };
        // What is saved waits here.
        timeline = Timeline::since(timeline::now());
        let subscription = transport.arrived(device).await?;
        timeline.mark("resume");
        sandbox.put_off(subscription);
        call = transport.dial();
    }
    sandbox.end().await;
    Ok(())
}
