//! The bytes of a process, between the client's descriptors and the guest.
//!
//! Each standard stream is a vsock connection of its own. Copying awaits both
//! ends, so a reader that stops stops the writer in the guest, through vsock's
//! flow control, and at most one buffer a stream is held here.
//!
//! Where the client has a terminal, the end of its input is that its other side
//! has gone. That ends the outputs as well, and the guest hangs its terminal up.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
};

use casemate_linux::reactor;
use casemate_protocol::{
    GUEST_STREAM_PORT,
    stream::{self, Stream, StreamHello},
};
use nix::libc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Bytes that a stream may hold here.
const BUFFER: usize = 64 << 10;

/// Longest answer of the hybrid socket ("OK 4294967295\n").
const MAX_ANSWER: usize = 16;

/// The client's ends of a process's standard streams; absent = not wanted.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Read by us.
    pub stdin: Option<OwnedFd>,
    /// Written by us.
    pub stdout: Option<OwnedFd>,
    /// Written by us; absent with a terminal.
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    /// What the agent has to know of it.
    pub fn wanted(&self) -> casemate_protocol::agent::Streams {
        casemate_protocol::agent::Streams {
            stdin: self.stdin.is_some(),
            stdout: self.stdout.is_some(),
            stderr: self.stderr.is_some(),
            ..Default::default()
        }
    }
}

/// A stream that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The way to the guest.
    #[error("{stream:?} of the process: {source}")]
    Connect {
        /// Which stream.
        stream: Stream,
        /// Why.
        source: stream::Error,
    },
    /// The client's descriptor.
    #[error("{stream:?} of the client: {source}")]
    Client {
        /// Which stream.
        stream: Stream,
        /// What the system said.
        source: io::Error,
    },
}

/// The running copies of what a process writes.
#[derive(Debug)]
pub struct Outputs(Vec<JoinHandle<()>>);

/// The running copy of what a process reads; ends when dropped.
#[derive(Debug)]
pub struct Input(JoinHandle<()>);

impl Outputs {
    /// Resolves when everything that the process wrote is with the client, or
    /// the client no longer wants it.
    pub async fn drained(&mut self) {
        while let Some(output) = self.0.last_mut() {
            // A copy cannot fail in a way that matters more than its end.
            let _ = output.await;
            self.0.pop();
        }
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        for output in &self.0 {
            output.abort();
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects the streams of a process, which may still be on its way, and starts
/// to copy.
///
/// # Errors
/// When the guest does not know the process, or a descriptor is unusable.
pub async fn attach(
    hybrid: &Path,
    container_id: &str,
    exec_id: &str,
    stdio: Stdio,
) -> Result<(Outputs, Option<Input>), Error> {
    let hello = |stream: Stream| StreamHello {
        container_id: container_id.to_owned(),
        exec_id: exec_id.to_owned(),
        stream: stream.into(),
        ..Default::default()
    };
    let connect = async |stream| {
        let connected = connect(hybrid, &hello(stream)).await;
        connected.map_err(|source| Error::Connect { stream, source })
    };
    let open = async |stream, fd: Option<OwnedFd>, direction| {
        let Some(fd) = fd else { return Ok(None) };
        let end = ClientEnd::open(fd, direction);
        let end = end.map_err(|source| Error::Client { stream, source })?;
        Ok(Some((end, connect(stream).await?)))
    };
    // Each is a round trip or two into the guest.
    let (stdout, stderr, stdin) = tokio::try_join!(
        open(Stream::STDOUT, stdio.stdout, Direction::Write),
        open(Stream::STDERR, stdio.stderr, Direction::Write),
        open(Stream::STDIN, stdio.stdin, Direction::Read),
    )?;
    let (hang_up, hung_up) = watch::channel(());
    let outputs = [stdout, stderr].into_iter().flatten();
    let outputs = outputs.map(|(client, guest)| {
        let (guest, keep) = guest.into_split();
        let mut hung_up = hung_up.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = copy_out(guest, keep, client) => {}
                Ok(()) = hung_up.changed() => {}
            }
        })
    });
    let input = stdin.map(|(client, guest)| {
        let (hangup, guest) = guest.into_split();
        Input(tokio::spawn(copy_in(client, guest, hangup, hang_up)))
    });
    Ok((Outputs(outputs.collect()), input))
}

/// Opens a stream connection through the hybrid socket.
///
/// # Errors
/// When the guest cannot be reached or has no such stream.
pub(crate) async fn connect(
    hybrid: &Path,
    hello: &StreamHello,
) -> Result<UnixStream, stream::Error> {
    let socket = casemate_linux::socket::connect(hybrid)?;
    socket.set_nonblocking(true)?;
    let mut socket = UnixStream::from_std(socket)?;
    socket
        .write_all(format!("CONNECT {GUEST_STREAM_PORT}\n").as_bytes())
        .await?;
    read_answer(&mut socket).await?;
    stream::request(&mut socket, hello).await?;
    Ok(socket)
}

/// Reads "OK <port>\n", byte by byte: what follows belongs to the stream.
async fn read_answer(socket: &mut UnixStream) -> io::Result<()> {
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        if answer.len() == MAX_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        answer.push(socket.read_u8().await?);
    }
    match answer.starts_with(b"OK ") {
        true => Ok(()),
        false => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// Guest to client, until the guest's end of stream. `_keep` holds the other
/// half open: closing it would tell the guest that nobody reads.
async fn copy_out(mut guest: OwnedReadHalf, _keep: OwnedWriteHalf, client: ClientEnd) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match guest.read(&mut buffer).await {
            Ok(count) if count > 0 => count,
            _ => return,
        };
        // The client has gone: dropping the connection gives the process its
        // SIGPIPE, as the closed pipe would.
        if client.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Client to guest, until the client's end of file (passed on as a half-close,
/// or as the end of all streams if it was a terminal) or until the guest hangs
/// up because the process wants no more.
async fn copy_in(
    client: ClientEnd,
    mut guest: OwnedWriteHalf,
    mut hangup: OwnedReadHalf,
    hang_up: watch::Sender<()>,
) {
    let work = async {
        let mut buffer = vec![0; BUFFER];
        while let Ok(count) = client.read(&mut buffer).await {
            if count == 0 && client.is_terminal() {
                // There may be no output to end.
                let _ = hang_up.send(());
            }
            if count == 0 || guest.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        let _ = guest.shutdown().await;
        std::future::pending::<()>().await
    };
    let mut nothing = [0; 1];
    tokio::select! {
        () = work => {}
        // The guest sends nothing on this connection; its end is the news.
        _ = hangup.read(&mut nothing) => {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// A descriptor of the client's, whatever it is, ready for this runtime.
///
/// O_NONBLOCK belongs to the open file that the client may share with others
/// (a shell's terminal), so pipes and terminals are opened anew; sockets cannot
/// be, and theirs is ours alone in practice.
enum ClientEnd {
    Polled {
        fd: AsyncFd<File>,
        terminal: bool,
    },
    /// Regular files and devices that cannot be polled: they do not block.
    Direct(File),
}

impl ClientEnd {
    fn open(fd: OwnedFd, direction: Direction) -> io::Result<Self> {
        let file = File::from(fd);
        let kind = file.metadata()?.file_type();
        if kind.is_file() || kind.is_dir() {
            return Ok(Self::Direct(file));
        }
        let file = if kind.is_socket() {
            set_nonblocking(&file)?;
            file
        } else if is_nonblocking(&file)? {
            // Somebody has opened it for us.
            file
        } else {
            reopen(&file, direction).or_else(|_| set_nonblocking(&file).map(|()| file))?
        };
        let interest = match direction {
            Direction::Read => Interest::READABLE,
            Direction::Write => Interest::WRITABLE,
        };
        match reactor::register_file(file, interest) {
            Ok(fd) => {
                let terminal = fd.get_ref().is_terminal();
                Ok(Self::Polled { fd, terminal })
            }
            // epoll(7): the file does not support polling (/dev/null).
            Err((file, error)) if error.raw_os_error() == Some(libc::EPERM) => {
                Ok(Self::Direct(file))
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Whether it is a terminal; one that was hung up is one no more for
    /// isatty(3).
    fn is_terminal(&self) -> bool {
        matches!(self, Self::Polled { terminal: true, .. })
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Direct(file) => (&*file).read(buffer),
            Self::Polled { fd, .. } => {
                let read = fd.async_io(Interest::READABLE, |mut file| file.read(buffer));
                match read.await {
                    // A terminal whose other side has gone.
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
                    other => other,
                }
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = match self {
                Self::Direct(file) => (&*file).write(bytes)?,
                Self::Polled { fd, .. } => {
                    fd.async_io(Interest::WRITABLE, |mut file| file.write(bytes))
                        .await?
                }
            };
            bytes = &bytes[count..];
        }
        Ok(())
    }
}

fn reopen(file: &File, direction: Direction) -> io::Result<File> {
    OpenOptions::new()
        .read(direction == Direction::Read)
        .write(direction == Direction::Write)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn is_nonblocking(file: &File) -> io::Result<bool> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    Ok(flags.contains(OFlag::O_NONBLOCK))
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// A guest that accepts one stream and plays `play` on it.
    async fn guest<F: Future<Output = ()> + 'static>(
        listener: UnixListener,
        play: impl FnOnce(UnixStream) -> F,
    ) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = vec![0; "CONNECT 1025\n".len()];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(line, b"CONNECT 1025\n");
        stream.write_all(b"OK 7\n").await.unwrap();
        let hello = stream::read_request(&mut stream).await.unwrap();
        assert_eq!(hello.container_id, "web");
        stream::answer(&mut stream, true).await.unwrap();
        play(stream).await;
    }

    fn on_runtime(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }

    #[test]
    fn a_reader_that_stops_stops_the_writer() {
        on_runtime(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("vm.vsock");
            let listener = UnixListener::bind(&path).unwrap();
            let (mut reader, writer) = io::pipe().unwrap();
            let stdio = Stdio {
                stdout: Some(writer.into()),
                ..Default::default()
            };
            let (written, count) = tokio::sync::oneshot::channel();
            let play = |mut stream: UnixStream| async move {
                let chunk = vec![7; 1 << 20];
                let mut total = 0;
                while let Ok(Ok(count)) = tokio::time::timeout(
                    std::time::Duration::from_millis(200),
                    stream.write(&chunk),
                )
                .await
                {
                    total += count;
                }
                written.send(total).unwrap();
                drop(stream);
            };
            let (copies, ()) = tokio::join!(attach(&path, "web", "", stdio), guest(listener, play));
            let (mut outputs, _) = copies.unwrap();
            let total = count.await.unwrap();
            assert!(total < 4 << 20, "{total} bytes went nowhere");
            let drain = std::thread::spawn(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                bytes.len()
            });
            outputs.drained().await;
            drop(outputs);
            assert_eq!(drain.join().unwrap(), total);
        });
    }

    #[test]
    fn the_end_of_input_is_a_half_close() {
        on_runtime(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("vm.vsock");
            let listener = UnixListener::bind(&path).unwrap();
            let (reader, mut writer) = io::pipe().unwrap();
            let stdio = Stdio {
                stdin: Some(reader.into()),
                ..Default::default()
            };
            writer.write_all(b"last words").unwrap();
            drop(writer);
            let play = |mut stream: UnixStream| async move {
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                assert_eq!(text, "last words");
            };
            let (copies, ()) = tokio::join!(attach(&path, "web", "", stdio), guest(listener, play));
            assert!(copies.unwrap().1.is_some());
        });
    }

    /// A terminal without the line discipline's changes: the user's side and ours.
    fn raw_terminal() -> (File, OwnedFd) {
        use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
        let options = OpenOptions::new().read(true).write(true).clone();
        let master = options.open("/dev/ptmx").unwrap();
        let peer = casemate_linux::terminal::open_peer(master.as_fd()).unwrap();
        let mut mode = tcgetattr(&peer).unwrap();
        cfmakeraw(&mut mode);
        tcsetattr(&peer, SetArg::TCSANOW, &mode).unwrap();
        (master, peer)
    }

    #[test]
    fn a_terminal_that_hangs_up_ends_the_outputs() {
        on_runtime(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("vm.vsock");
            let listener = UnixListener::bind(&path).unwrap();
            let (master, peer) = raw_terminal();
            let stdio = Stdio {
                stdout: Some(peer.try_clone().unwrap()),
                stdin: Some(peer),
                stderr: None,
            };
            let guest = async {
                let accept = async || {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    stream.read_exact(&mut [0; 13]).await.unwrap();
                    stream.write_all(b"OK 7\n").await.unwrap();
                    let hello = stream::read_request(&mut stream).await.unwrap();
                    stream::answer(&mut stream, true).await.unwrap();
                    (hello.stream == Stream::STDIN.into(), stream)
                };
                let (one, other) = (accept().await, accept().await);
                match one.0 {
                    true => (other.1, one.1),
                    false => (one.1, other.1),
                }
            };
            let (copies, (mut out, _in)) = tokio::join!(attach(&path, "web", "", stdio), guest);
            let (mut outputs, _input) = copies.unwrap();
            out.write_all(b"prompt").await.unwrap();
            let user = std::thread::spawn(move || {
                let mut shown = [0; 6];
                (&master).read_exact(&mut shown).unwrap();
            });
            outputs.drained().await;
            user.join().unwrap();
            assert_eq!(out.read(&mut [0; 1]).await.unwrap(), 0, "the guest is told");
        });
    }

    #[test]
    fn plain_files_and_dev_null_serve_as_well() {
        on_runtime(async {
            let file = tempfile::tempfile().unwrap();
            let end = ClientEnd::open(file.try_clone().unwrap().into(), Direction::Write).unwrap();
            end.write_all(b"text").await.unwrap();
            assert_eq!(file.metadata().unwrap().len(), 4);
            let null = File::open("/dev/null").unwrap();
            let end = ClientEnd::open(null.into(), Direction::Read).unwrap();
            assert_eq!(end.read(&mut [0; 8]).await.unwrap(), 0);
        });
    }
}
