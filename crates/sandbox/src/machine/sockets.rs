//! The sockets of one machine: where its agent calls, where the host calls into
//! it, and how the VMM reaches the device process.

use std::{
    fs,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
};

use casemate_hypervisor::{FileShare, Vsock};
use casemate_linux::socket;
use casemate_protocol::{HOST_CONTROL_PORT, HOST_NAMES_PORT, SHARE_TAG};
use tokio::net::UnixListener;
use ttrpc::asynchronous::transport::Socket;

use super::{Error, at};
use crate::device_process::{self, DeviceProcess};

/// Directory of the hybrid vsock sockets.
const DIRECTORY: &str = "vsock";
/// The hybrid socket itself (`CONNECT <port>`).
const HYBRID_SOCKET: &str = "vm.vsock";

/// The sockets in the directory of a sandbox.
#[derive(Debug)]
pub(crate) struct Sockets {
    directory: PathBuf,
    control: UnixListener,
    hybrid: StdListener,
}

/// What a device process is started with, beside sockets.
pub(crate) struct Devices<'a> {
    /// The share, in this mount namespace.
    pub(crate) share: &'a Path,
    /// Context id of the guest.
    pub(crate) guest_cid: u64,
    /// How long the guest may trust its cache.
    pub(crate) cache: casemate_config::CachePolicy,
}

/// The back ends' sides of the VMM's two connections.
pub(crate) struct BackEnds {
    fs: OwnedFd,
    vsock: OwnedFd,
}

impl Sockets {
    /// Makes them in the directory `sandbox`.
    ///
    /// # Errors
    /// A full disk, or a path too long for a socket.
    pub(crate) fn make(sandbox: &Path) -> Result<Self, Error> {
        let directory = sandbox.join(DIRECTORY);
        fs::create_dir(&directory).map_err(at("make directory", &directory))?;
        let hybrid = listen(&directory.join(HYBRID_SOCKET))?;
        let control = control(&directory)?;
        Ok(Self {
            directory,
            control,
            hybrid,
        })
    }

    /// Forgets whoever has called: a machine that is no more.
    ///
    /// # Errors
    /// As [`Sockets::make`].
    pub(crate) fn hang_up(&mut self) -> Result<(), Error> {
        let path = host_port(&self.directory, HOST_CONTROL_PORT);
        fs::remove_file(&path).map_err(at("remove", &path))?;
        self.control = control(&self.directory)?;
        Ok(())
    }

    /// Waits for the agent's call.
    ///
    /// # Errors
    /// EMFILE.
    pub(crate) async fn call(&self) -> Result<Socket, Error> {
        let accepted = self.control.accept().await;
        let (connection, _) = accepted.map_err(at("accept on", &self.directory))?;
        Ok(Socket::new(connection))
    }

    /// Listening sockets for the back ends and connections to them for the VMM.
    /// The paths are gone again at once: nobody else may come.
    ///
    /// # Errors
    /// As [`Sockets::make`].
    pub(crate) fn back_ends(&self) -> Result<(BackEnds, FileShare, Vsock), Error> {
        let (fs, files) = self.pair("fs.sock")?;
        let (vsock, socket) = self.pair("vsock.sock")?;
        let files = FileShare {
            tag: SHARE_TAG.to_owned(),
            socket: files,
        };
        Ok((BackEnds { fs, vsock }, files, Vsock { socket }))
    }

    fn pair(&self, name: &str) -> Result<(OwnedFd, OwnedFd), Error> {
        let path = self.directory.with_file_name(name);
        let listener = listen(&path)?;
        let connection = socket::connect(&path).map_err(at("connect to", &path))?;
        fs::remove_file(&path).map_err(at("remove", &path))?;
        Ok((listener.into(), connection.into()))
    }

    /// Starts the device process; requests wait in its sockets until it serves.
    ///
    /// # Errors
    /// When the process or its log cannot be made.
    pub(crate) fn serve(
        &self,
        back_ends: &BackEnds,
        devices: &Devices<'_>,
    ) -> Result<DeviceProcess, device_process::Error> {
        DeviceProcess::spawn(device_process::Start {
            share: devices.share,
            vsock_directory: &self.directory,
            fs_listener: back_ends.fs.as_fd(),
            vsock_listener: back_ends.vsock.as_fd(),
            hybrid_listener: self.hybrid_listener(),
            guest_cid: devices.guest_cid,
            cache: devices.cache,
            log: &self.directory.with_file_name(device_process::LOG),
        })
    }

    fn hybrid_listener(&self) -> BorrowedFd<'_> {
        self.hybrid.as_fd()
    }

    /// Where the host calls into the guest.
    pub(crate) fn hybrid(&self) -> PathBuf {
        self.directory.join(HYBRID_SOCKET)
    }

    /// Where the guest asks for names.
    pub(crate) fn names(&self) -> PathBuf {
        host_port(&self.directory, HOST_NAMES_PORT)
    }
}

fn control(directory: &Path) -> Result<UnixListener, Error> {
    let path = host_port(directory, HOST_CONTROL_PORT);
    let control = listen(&path)?;
    control
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(control))
        .map_err(at("listen on", &path))
}

/// Where the host is reached at a vsock port of its own.
fn host_port(directory: &Path, port: u32) -> PathBuf {
    directory.join(format!("{HYBRID_SOCKET}_{port}"))
}

fn listen(path: &Path) -> Result<StdListener, Error> {
    socket::listen(path).map_err(at("listen on", path))
}
