//! Name servers in the sandbox's network namespace: Docker runs one there for
//! its user-defined networks, at a loopback address that resolv.conf names. The
//! guest's loopback interface is another one, so the agent passes on what is
//! sent to that address ([`casemate_protocol::names`]), and it is asked from
//! here.
//!
//! Questions come from the guest: they are limited in number, size and time, go
//! to no address but those of [`loopback_servers`], and are not looked into.

use std::{
    cell::RefCell,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    net::{Ipv4Addr, SocketAddrV4, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use casemate_linux::{namespace::within_network, socket};
use casemate_protocol::names::{PORT, Way, read_ask, receive, send};
use tokio::{
    io::copy_bidirectional,
    net::{TcpStream, UdpSocket, UnixListener, UnixStream},
    sync::Semaphore,
    task::{JoinHandle, spawn_local},
    time::timeout,
};

/// How much of a resolv.conf is read, and how many servers are taken: resolvers
/// look at three.
const MAX_FILE: u64 = 64 << 10;
const SERVERS: usize = 3;

/// Questions that are on their way at a time; more wait.
const QUESTIONS: usize = 64;

/// How long the answer to a message may take.
const ANSWER: Duration = Duration::from_secs(15);

/// How long a stream may be open in all.
const STREAM: Duration = Duration::from_secs(120);

/// How long a server may take to accept a connection; it is on this host.
const CONNECT: Duration = Duration::from_secs(1);

/// Largest message over UDP.
const MAX_DATAGRAM: usize = 65535;

/// The name servers at loopback addresses of IPv4 that the files name. A
/// container may write to them, and what it writes is read as what it is.
pub(super) fn loopback_servers(files: &[PathBuf]) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    for file in files {
        let text = read(file).unwrap_or_default();
        for server in servers(&text).take(SERVERS) {
            if server.is_loopback() && !found.contains(&server) && found.len() < SERVERS {
                found.push(server);
            }
        }
    }
    found
}

/// resolv.conf(5): "nameserver", blanks, an address.
fn servers(text: &str) -> impl Iterator<Item = Ipv4Addr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    })
}

fn read(path: &Path) -> io::Result<String> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The running relay; it ends when dropped.
#[derive(Debug)]
pub(super) struct Relay {
    servers: Rc<RefCell<Vec<Ipv4Addr>>>,
    task: JoinHandle<()>,
    socket: PathBuf,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        // The sandbox's directory goes soon, and this with it.
        let _ = fs::remove_file(&self.socket);
    }
}

impl Relay {
    /// Listens at `path` for what the guest passes on.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub(super) fn start(path: &Path, namespace: &File) -> io::Result<Self> {
        let listener = socket::listen(path)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let servers = Rc::<RefCell<Vec<Ipv4Addr>>>::default();
        let line = Line {
            servers: Rc::clone(&servers),
            namespace: Rc::new(namespace.try_clone()?),
        };
        Ok(Self {
            servers,
            task: spawn_local(line.accept(listener)),
            socket: path.to_owned(),
        })
    }

    /// The servers that may be asked from now on.
    pub(super) fn allow(&self, servers: Vec<Ipv4Addr>) {
        self.servers.replace(servers);
    }
}

#[derive(Clone)]
struct Line {
    servers: Rc<RefCell<Vec<Ipv4Addr>>>,
    namespace: Rc<File>,
}

impl Line {
    async fn accept(self, listener: UnixListener) {
        let places = Rc::new(Semaphore::new(QUESTIONS));
        while let Ok(place) = places.acquire().await {
            let guest = match listener.accept().await {
                Ok((guest, _)) => guest,
                Err(error) => {
                    tracing::warn!(%error, "questions for name servers");
                    tokio::time::sleep(CONNECT).await;
                    continue;
                }
            };
            place.forget();
            let (line, places) = (self.clone(), Rc::clone(&places));
            spawn_local(async move {
                if let Err(error) = line.pass_on(guest).await {
                    tracing::debug!(%error, "a question for a name server");
                }
                places.add_permits(1);
            });
        }
    }

    async fn pass_on(self, mut guest: UnixStream) -> io::Result<()> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let (way, server) = timeout(ANSWER, read_ask(&mut guest))
            .await
            .map_err(late)??;
        if !self.servers.borrow().contains(&server) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let server = SocketAddrV4::new(server, PORT);
        match way {
            Way::Datagram => {
                let asked = self.datagram(&mut guest, server);
                timeout(ANSWER, asked).await.map_err(late)?
            }
            Way::Stream => {
                let streamed = self.stream(&mut guest, server);
                timeout(STREAM, streamed).await.map_err(late)?
            }
        }
    }

    async fn datagram(&self, guest: &mut UnixStream, server: SocketAddrV4) -> io::Result<()> {
        let question = receive(guest).await?;
        let connected = within_network(self.namespace.as_fd(), || {
            let socket = StdUdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        })??;
        let socket = UdpSocket::from_std(connected)?;
        socket.send(&question).await?;
        let mut answer = vec![0; MAX_DATAGRAM];
        let count = socket.recv(&mut answer).await?;
        send(guest, &answer[..count]).await
    }

    async fn stream(&self, guest: &mut UnixStream, server: SocketAddrV4) -> io::Result<()> {
        let connected = within_network(self.namespace.as_fd(), || {
            let stream = StdTcpStream::connect_timeout(&server.into(), CONNECT)?;
            stream.set_nonblocking(true)?;
            Ok::<_, io::Error>(stream)
        })??;
        let mut host = TcpStream::from_std(connected)?;
        copy_bidirectional(guest, &mut host).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::names::ask;

    use super::*;

    #[test]
    fn only_loopback_servers_of_regular_files_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        let text = "# nameserver 127.0.0.1\nsearch a\nnameserver 127.0.0.11\n\
                    nameserver 10.0.0.1\nnameserver ::1\n";
        fs::write(&file, text).unwrap();
        let missing = directory.path().join("none");
        let found = loopback_servers(&[missing, file.clone(), file, "/dev/zero".into()]);
        assert_eq!(found, [Ipv4Addr::new(127, 0, 0, 11)]);
        assert!(servers("nameserver\nnameserver x").next().is_none());
    }

    fn relayed<T>(test: impl AsyncFnOnce(&Relay, &Path) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("names");
            let here = File::open("/proc/thread-self/ns/net").unwrap();
            let relay = Relay::start(&path, &here).unwrap();
            let result = test(&relay, &path).await;
            drop(relay);
            assert!(!path.exists());
            result
        })
    }

    #[test]
    fn nobody_is_asked_who_was_not_announced() {
        relayed(async |relay, path| {
            relay.allow(vec![Ipv4Addr::new(127, 0, 0, 11)]);
            let mut guest = UnixStream::connect(path).await.unwrap();
            let other = Ipv4Addr::new(127, 0, 0, 12);
            ask(&mut guest, Way::Datagram, other).await.unwrap();
            send(&mut guest, b"?").await.unwrap();
            assert!(receive(&mut guest).await.is_err());
        });
    }

    #[test]
    fn a_question_is_answered() {
        // Port 53 of a loopback address in a namespace of the test's own.
        if !nix::unistd::geteuid().is_root() {
            return println!("skipped: a network namespace needs root");
        }
        let answered = casemate_linux::namespace::within_new_network(|| {
            casemate_linux::interface::set_up("lo").unwrap();
            let server = StdUdpSocket::bind("127.0.0.11:53").unwrap();
            let answer = std::thread::spawn(move || {
                let mut question = [0; 64];
                let (count, from) = server.recv_from(&mut question).unwrap();
                question[..count].reverse();
                server.send_to(&question[..count], from).unwrap();
            });
            let told = relayed(async |relay, path| {
                let server = Ipv4Addr::new(127, 0, 0, 11);
                relay.allow(vec![server]);
                let mut guest = UnixStream::connect(path).await.unwrap();
                ask(&mut guest, Way::Datagram, server).await.unwrap();
                send(&mut guest, b"hello").await.unwrap();
                receive(&mut guest).await.unwrap()
            });
            answer.join().unwrap();
            told
        });
        assert_eq!(answered.unwrap(), b"olleh");
    }
}
