//! How host and agent reach each other: vsock in a VM, unix sockets where the
//! agent is looked at without one. Both are byte streams with half-close.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use casemate_linux::{reactor::register, vsock};
use casemate_protocol::{GUEST_STREAM_PORT, HOST_CONTROL_PORT, HOST_NAMES_PORT};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, VsockAddr, bind, connect,
        getsockopt, listen, recv, send, shutdown, socket, sockopt::SocketError,
    },
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::{
    arrival::{Subscription, driven, until_driven},
    error::{Doing, Result},
};

/// How long the monitor may take to accept. It listens before the VM starts;
/// this only has to outlast a host that is very busy.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Stream connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Where the kernel shows the devices of virtio's drivers.
const DRIVERS: &str = "/sys/bus/virtio/drivers";

/// The driver of the virtio-vsock device.
const DRIVER: &str = "vmw_vsock_virtio_transport";

/// What the two sides talk over.
#[derive(Debug, Clone)]
pub(crate) enum Transport {
    /// The VM's virtio-vsock device.
    Vsock,
    /// `control` and `names` (to connect to) and `streams` (to listen at) in a
    /// directory.
    Unix(PathBuf),
}

impl Transport {
    /// The context id of the vsock device; none without one, and over unix sockets.
    pub(crate) fn cid(&self) -> Result<Option<u32>> {
        match self {
            Self::Vsock => vsock::local_cid().doing(|| "read the context id".into()),
            Self::Unix(_) => Ok(None),
        }
    }

    /// Which device is dialled over: no other one has its number, not even in its
    /// place. None without a device, and over unix sockets.
    pub(crate) fn device(&self) -> Result<Option<u64>> {
        match self {
            Self::Vsock => {
                let folder = Path::new(DRIVERS).join(DRIVER);
                driven(&folder).doing(|| format!("look into {}", folder.display()))
            }
            Self::Unix(_) => Ok(None),
        }
    }

    /// Waits, for as long as it takes, until there is something to dial over that is
    /// not `last`. That it was gone in between may never have been seen: a VM that
    /// is saved stops without a word. Unix sockets are always there; those of a
    /// template's clone are others.
    pub(crate) async fn arrived(&self, last: Option<u64>) -> Result<Option<Subscription>> {
        match self {
            Self::Vsock => {
                let look = || Ok(self.device()? != last && self.cid()?.is_some());
                until_driven(DRIVER, look).await.map(Some)
            }
            Self::Unix(_) => Ok(None),
        }
    }

    /// Begins to connect to the host; see [`Dialled::answered`].
    ///
    /// # Errors
    /// ENODEV without a vsock device.
    pub(crate) fn dial(&self) -> io::Result<Dialled> {
        self.connect(HOST_CONTROL_PORT, "control")
    }

    /// Begins to connect to the host's relay for name servers.
    pub(crate) fn dial_names(&self) -> io::Result<Dialled> {
        self.connect(HOST_NAMES_PORT, "names")
    }

    fn connect(&self, port: u32, name: &str) -> io::Result<Dialled> {
        let socket = match self {
            Self::Vsock => {
                let socket = vsock_socket()?;
                vsock::set_connect_timeout(socket.as_fd(), CONNECT_TIMEOUT)?;
                let host = VsockAddr::new(libc::VMADDR_CID_HOST, port);
                match connect(socket.as_raw_fd(), &host) {
                    Ok(()) | Err(Errno::EINPROGRESS) => socket,
                    Err(errno) => return Err(errno.into()),
                }
            }
            Self::Unix(directory) => {
                let stream = UnixStream::connect(directory.join(name))?;
                stream.set_nonblocking(true)?;
                stream.into()
            }
        };
        Ok(Dialled(Connection::new(socket)?))
    }

    /// Awaits stream connections.
    pub(crate) fn listen(&self) -> io::Result<Listener> {
        let socket = match self {
            Self::Vsock => {
                let socket = vsock_socket()?;
                let any = VsockAddr::new(libc::VMADDR_CID_ANY, GUEST_STREAM_PORT);
                bind(socket.as_raw_fd(), &any)?;
                listen(&socket, Backlog::new(BACKLOG)?)?;
                socket
            }
            Self::Unix(directory) => {
                let path = directory.join("streams");
                // That of an earlier connection.
                let _ = fs::remove_file(&path);
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                listener.into()
            }
        };
        Ok(Listener(register(socket, Interest::READABLE)?))
    }
}

fn vsock_socket() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?)
}

/// A connection that may not be there yet, so that other work is done while
/// the host answers.
#[derive(Debug)]
pub(crate) struct Dialled(Connection);

impl Dialled {
    /// Waits until the host has accepted.
    ///
    /// # Errors
    /// ECONNRESET when nobody listens there.
    pub(crate) async fn answered(self) -> io::Result<Connection> {
        let socket = &self.0.0;
        // A socket that is still connecting is not writable.
        drop(socket.writable().await?);
        match getsockopt(socket, SocketError)? {
            0 => Ok(self.0),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Where stream connections arrive.
#[derive(Debug)]
pub(crate) struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Connection> {
        let socket = self
            .0
            .async_io(Interest::READABLE, |listener| {
                vsock::accept(listener.as_fd())
            })
            .await?;
        Connection::new(socket)
    }
}

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(register(
            socket,
            Interest::READABLE | Interest::WRITABLE,
        )?))
    }

    /// Receives what has come; 0 when the other side sends no more.
    pub(crate) async fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0
            .async_io(Interest::READABLE, |socket| {
                Ok(recv(socket.as_raw_fd(), bytes, MsgFlags::empty())?)
            })
            .await
    }

    /// Sends everything; waits while the other side does not take it.
    pub(crate) async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self
                .0
                .async_io(Interest::WRITABLE, |socket| {
                    Ok(send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
                })
                .await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Half-close: nothing more will be sent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Write)?)
    }

    /// Waits until the other side sends no more, throwing away what it sends.
    pub(crate) async fn closed(&self) {
        let mut waste = [0; 512];
        while matches!(self.receive(&mut waste).await, Ok(1..)) {}
    }

    /// A watch on the whole connection's end. A half-close of the other side
    /// does not count.
    pub(crate) fn hangup(&self) -> io::Result<Hangup> {
        let copy = self.0.get_ref().try_clone()?;
        Ok(Hangup(register(
            copy,
            Interest::READABLE | Interest::WRITABLE,
        )?))
    }
}

/// See [`Connection::hangup`].
#[derive(Debug)]
pub(crate) struct Hangup(AsyncFd<OwnedFd>);

impl Hangup {
    /// Waits until the other side is gone. EPOLLHUP does not tell: a vsock
    /// raises it only when our side is closed as well. So any end of reading is
    /// looked into; behind a half-close, the end of writing shows as room to
    /// write.
    pub(crate) async fn happened(&self) {
        let mut watched = Interest::READABLE;
        while let Ok(mut guard) = self.0.ready(watched).await {
            if watched == Interest::WRITABLE || guard.ready().is_read_closed() {
                if self.takes_nothing() {
                    return;
                }
                watched = Interest::WRITABLE;
            }
            guard.clear_ready();
        }
    }

    /// Sending no bytes at all fails where sending some would.
    fn takes_nothing(&self) -> bool {
        let socket = self.0.get_ref().as_raw_fd();
        send(socket, &[], MsgFlags::MSG_NOSIGNAL).is_err()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            let received =
                guard.try_io(|socket| Ok(recv(socket.as_raw_fd(), space, MsgFlags::empty())?));
            if let Ok(result) = received {
                return Poll::Ready(result.map(|count| buffer.advance(count)));
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            let sent =
                guard.try_io(|socket| Ok(send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?));
            if let Ok(result) = sent {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn pair() -> (Connection, tokio::net::UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (
            Connection::new(ours.into()).unwrap(),
            tokio::net::UnixStream::from_std(theirs).unwrap(),
        )
    }

    #[tokio::test]
    async fn a_half_close_is_no_hangup() {
        let (connection, mut peer) = pair();
        let hangup = connection.hangup().unwrap();
        peer.shutdown().await.unwrap();
        connection.closed().await;
        let early = tokio::time::timeout(Duration::from_millis(50), hangup.happened()).await;
        assert!(early.is_err());
        drop(peer);
        hangup.happened().await;
    }

    #[tokio::test]
    async fn nobody_listening_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let transport = Transport::Unix(directory.path().to_owned());
        assert_eq!(
            transport.dial().unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
