//! The console socket, as conmon and containerd's shim have one: the runtime
//! sends the container's terminal there.

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::command::Typist;
use crate::host::Host;
use crate::wait::until;

/// A socket that waits for a terminal.
pub struct ConsoleSocket<'h> {
    host: &'h Host,
    listener: UnixListener,
    /// Where it is.
    pub path: PathBuf,
}

impl<'h> ConsoleSocket<'h> {
    /// Listens at a new place.
    pub fn new(host: &'h Host) -> Result<ConsoleSocket<'h>> {
        let path = host.new_folder("console")?.join("socket");
        let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        listener.set_nonblocking(true)?;
        Ok(ConsoleSocket {
            host,
            listener,
            path,
        })
    }

    /// Takes the terminal that a runtime has sent.
    pub fn accept(&self) -> Result<Typist<'h>> {
        let limit = Duration::from_secs(20);
        let terminal = until("a terminal at the console socket", limit, || {
            match self.listener.accept() {
                Ok((stream, _)) => Ok(Some(received(&OwnedFd::from(stream))?)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error).context("console socket"),
            }
        })?;
        Typist::at(
            self.host,
            format!("console {}", self.path.display()),
            terminal,
        )
    }
}

/// The one descriptor that comes with a message.
fn received(stream: &OwnedFd) -> Result<File> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    let mut into = [IoSliceMut::new(&mut name)];
    recvmsg(stream, &mut into, &mut rights, RecvFlags::CMSG_CLOEXEC).context("console socket")?;
    let terminal = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(terminal
        .context("no terminal came through the console socket")?
        .into())
}
