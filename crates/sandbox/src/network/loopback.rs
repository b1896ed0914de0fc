//! The way to ports that are open on the guest's loopback interface alone. Who
//! enters the sandbox's network namespace and connects to 127.0.0.1 there means
//! the container's: containerd does so for `kubectl port-forward`.
//!
//! ```text
//!  containerd ── 127.0.0.1:8080 ──(program)──► listener ── vsock ──► agent ── 127.0.0.1:8080
//! ```
//!
//! A program of the namespace gives our one listener every connection to that
//! address, whatever the port. It goes with the last process that holds it.
//! Other addresses of 127.0.0.0/8 may be served by the client itself
//! ([`super::names`]).

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, TcpListener as StdTcpListener},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use casemate_linux::{
    bpf::{instruction, link_lookup_program, map_of_socket},
    namespace::within_network,
};
use casemate_protocol::stream::{self, StreamHello};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, spawn_local},
    time::timeout,
};

use crate::stdio;

/// Connections at a time; more wait.
const CONNECTIONS: usize = 256;

/// How long the guest may take to say whether somebody listens there.
const ANSWER: Duration = Duration::from_secs(10);

/// How long nothing is accepted after the kernel could not.
const PAUSE: Duration = Duration::from_millis(100);

/// The open way; it ends when dropped.
#[derive(Debug)]
pub(super) struct Loopback {
    task: JoinHandle<()>,
    _program: OwnedFd,
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Loopback {
    /// Opens the way from `namespace` through the machine's hybrid socket.
    ///
    /// # Errors
    /// When the kernel has no such programs (before Linux 5.9), EPERM.
    pub(super) fn open(namespace: &File, hybrid: &Path) -> io::Result<Self> {
        let listener = within_network(namespace.as_fd(), || {
            let listener = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener)
        })??;
        let map = map_of_socket(listener.as_fd())?;
        let program = link_lookup_program(&compile(map.as_fd()), namespace.as_fd())?;
        let listener = TcpListener::from_std(listener)?;
        Ok(Self {
            task: spawn_local(accept(listener, hybrid.into())),
            _program: program,
        })
    }
}

async fn accept(listener: TcpListener, hybrid: Rc<Path>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let hybrid = Rc::clone(&hybrid);
        spawn_local(async move {
            if let Err(error) = pass_on(client, &hybrid).await {
                tracing::debug!(%error, "a connection to a port of the guest");
            }
            drop(place);
        });
    }
}

/// Connects the client to the port of the guest that it asked for: the kernel
/// leaves that as the connection's local address.
async fn pass_on(mut client: TcpStream, hybrid: &Path) -> Result<(), stream::Error> {
    let hello = StreamHello {
        loopback_port: client.local_addr()?.port().into(),
        ..Default::default()
    };
    let asked = timeout(ANSWER, stdio::connect(hybrid, &hello)).await;
    let asked = asked.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
    let mut guest = match asked {
        Ok(guest) => guest,
        Err(error) => {
            // It has been accepted here; a reset is the refusal that is left.
            client.set_zero_linger()?;
            return Err(error);
        }
    };
    copy_bidirectional(&mut client, &mut guest).await?;
    Ok(())
}

/// Opcodes, as in <linux/bpf.h>.
const LOAD_WORD: u8 = 0x61;
const STORE_NUMBER: u8 = 0x62;
const LOAD_NUMBER: u8 = 0x18;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const ADD: u8 = 0x07;
const JUMP_IF_EQUAL: u8 = 0x15;
/// Compares 32 bits with an immediate value.
const JUMP_IF_NOT_32: u8 = 0x56;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Source register of [`LOAD_NUMBER`]: the number is a map's descriptor.
const MAP_DESCRIPTOR: u8 = 1;

/// Helpers: bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release.
const MAP_LOOKUP: u32 = 1;
const ASSIGN: u32 = 124;
const RELEASE: u32 = 86;

/// Members of `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;

/// A lookup program that gives the socket in `map` what comes for 127.0.0.1 by
/// TCP. Everything else goes on to who listens.
fn compile(map: BorrowedFd<'_>) -> Vec<u64> {
    let address = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
    vec![
        instruction(MOVE_REGISTER, 6, 1, 0, 0),
        instruction(LOAD_WORD, 0, 6, FAMILY, 0),
        instruction(JUMP_IF_NOT_32, 0, 0, 18, libc::AF_INET as u32),
        instruction(LOAD_WORD, 0, 6, PROTOCOL, 0),
        instruction(JUMP_IF_NOT_32, 0, 0, 16, libc::IPPROTO_TCP as u32),
        instruction(LOAD_WORD, 0, 6, LOCAL_IP4, 0),
        instruction(JUMP_IF_NOT_32, 0, 0, 14, address),
        // The key, on the stack.
        instruction(STORE_NUMBER, 10, 0, -4, 0),
        // One instruction in two.
        instruction(LOAD_NUMBER, 1, MAP_DESCRIPTOR, 0, map.as_raw_fd() as u32),
        instruction(0, 0, 0, 0, 0),
        instruction(MOVE_REGISTER, 2, 10, 0, 0),
        instruction(ADD, 2, 0, 0, -4_i32 as u32),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP),
        instruction(JUMP_IF_EQUAL, 0, 0, 7, 0),
        instruction(MOVE_REGISTER, 7, 0, 0, 0),
        instruction(MOVE_REGISTER, 1, 6, 0, 0),
        instruction(MOVE_REGISTER, 2, 7, 0, 0),
        instruction(MOVE, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, ASSIGN),
        instruction(MOVE_REGISTER, 1, 7, 0, 0),
        instruction(CALL, 0, 0, 0, RELEASE),
        // SK_PASS
        instruction(MOVE, 0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream as StdTcpStream;
    use std::sync::mpsc;
    use std::thread;

    use casemate_protocol::stream::{answer, read_request};
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    /// Plays a guest in which port 80 alone is open, and says what it hears.
    async fn guest(hybrid: UnixListener) {
        while let Ok((connection, _)) = hybrid.accept().await {
            let mut connection = BufReader::new(connection);
            let mut line = String::new();
            connection.read_line(&mut line).await.unwrap();
            assert_eq!(line, "CONNECT 1025\n");
            connection.write_all(b"OK 1\n").await.unwrap();
            let port = read_request(&mut connection).await.unwrap().loopback_port;
            answer(&mut connection, port == 80).await.unwrap();
            if port == 80 {
                let mut heard = String::new();
                connection.read_to_string(&mut heard).await.unwrap();
                let said = format!("heard {heard}");
                connection.write_all(said.as_bytes()).await.unwrap();
            }
        }
    }

    /// What who connects to `address` and says "hello" gets.
    fn dial(address: &str) -> io::Result<String> {
        let mut server = StdTcpStream::connect(address)?;
        server.write_all(b"hello")?;
        server.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        server.read_to_string(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn every_port_of_127_0_0_1_leads_to_the_guest_and_no_other_address() {
        if !nix::unistd::geteuid().is_root() {
            return println!("skipped: a network namespace needs root");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hybrid");
        let answers = casemate_linux::namespace::within_new_network(|| {
            casemate_linux::interface::set_up("lo").unwrap();
            let here = File::open("/proc/thread-self/ns/net").unwrap();
            let (done, waiting) = mpsc::channel();
            let runtime = thread::scope(|scope| {
                let serving = scope.spawn(|| serve(&path, &here, waiting));
                while !path.exists() {
                    thread::yield_now();
                }
                let addresses = ["127.0.0.1:80", "127.0.0.1:81", "127.0.0.2:80"];
                let answers = addresses.map(|address| dial(address).map_err(|e| e.kind()));
                drop(done);
                serving.join().unwrap();
                answers
            });
            (runtime, dial("127.0.0.1:80").map_err(|e| e.kind()))
        });
        let ([open, closed, other], after) = answers.unwrap();
        assert_eq!(open.unwrap(), "heard hello");
        assert!(closed.is_err());
        assert_eq!(other.unwrap_err(), io::ErrorKind::ConnectionRefused);
        assert_eq!(after.unwrap_err(), io::ErrorKind::ConnectionRefused);
    }

    /// Keeps the way open until `waiting` has no sender any more.
    fn serve(path: &Path, namespace: &File, waiting: mpsc::Receiver<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let way = Loopback::open(namespace, path).unwrap();
            let hybrid = UnixListener::bind(path).unwrap();
            let guest = spawn_local(guest(hybrid));
            while waiting.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            guest.abort();
            drop(way);
        });
    }
}
