//! Name servers of the host's side: clients such as Docker put one into the
//! network namespace of a container and name its loopback address in
//! resolv.conf. The guest has another loopback interface, so what is sent to
//! that address here is passed on over vsock ([`casemate_protocol::names`]).
//!
//! ```text
//!  container ── 127.0.0.11:53 ──(program)──► 127.0.0.11:n ── vsock ──► monitor ── 127.0.0.11:53
//! ```

mod program;

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use casemate_linux::{interface, namespace::network_cookie};
use casemate_protocol::names::{Way, ask, receive, send};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};

use crate::{
    console::say,
    error::{Doing, Result},
    transport::{Connection, Transport},
};

/// Questions that are on their way at a time; more are dropped, as a busy
/// server would.
const QUESTIONS: usize = 64;

/// How long an answer may take: longer than any resolver waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// Largest message over UDP.
const MAX_DATAGRAM: usize = 65535;

/// The name servers that are served now.
#[derive(Debug)]
pub(crate) struct Names {
    transport: Transport,
    served: HashMap<Ipv4Addr, Served>,
}

/// One of them: both go when it is dropped.
#[derive(Debug)]
struct Served {
    task: JoinHandle<()>,
    _programs: Vec<OwnedFd>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Names {
    pub(crate) fn new(transport: Transport) -> Self {
        Self {
            transport,
            served: HashMap::new(),
        }
    }

    /// Serves these and no others; tells whether there was anything to do.
    pub(crate) async fn update(&mut self, servers: &[Ipv4Addr]) -> Result<bool> {
        let mut changed = false;
        self.served.retain(|server, _| servers.contains(server));
        for server in servers {
            if self.served.contains_key(server) {
                continue;
            }
            let served = serve(*server, self.transport.clone()).await;
            let served = served.doing(|| format!("pass on what is sent to {server}:53"))?;
            self.served.insert(*server, served);
            changed = true;
        }
        Ok(changed)
    }
}

async fn serve(server: Ipv4Addr, transport: Transport) -> io::Result<Served> {
    // Without it there are no loopback addresses.
    interface::set_up("lo")?;
    let datagrams = UdpSocket::bind((server, 0)).await?;
    let here = SocketAddrV4::new(server, datagrams.local_addr()?.port());
    let streams = TcpListener::bind(here).await?;
    let cookie = network_cookie(datagrams.as_fd())?;
    let relay = Relay {
        transport,
        server,
        places: Arc::new(Semaphore::new(QUESTIONS)),
    };
    Ok(Served {
        _programs: program::lead(here, cookie)?,
        task: tokio::spawn(relay.run(datagrams, streams)),
    })
}

#[derive(Clone)]
struct Relay {
    transport: Transport,
    server: Ipv4Addr,
    places: Arc<Semaphore>,
}

impl Relay {
    async fn run(self, datagrams: UdpSocket, streams: TcpListener) {
        let datagrams = Arc::new(datagrams);
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            tokio::select! {
                received = datagrams.recv_from(&mut buffer) => {
                    // An error is one of an earlier answer that nobody wanted.
                    let Ok((count, from)) = received else { continue };
                    let answers = Arc::clone(&datagrams);
                    self.spawn(self.clone().datagram(buffer[..count].to_vec(), from, answers));
                }
                accepted = streams.accept() => match accepted {
                    Ok((stream, _)) => self.spawn(self.clone().stream(stream)),
                    // The container's fault and the kernel's limit: not so fast.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
            }
        }
    }

    fn spawn(&self, question: impl Future<Output = io::Result<()>> + Send + 'static) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return;
        };
        let server = self.server;
        tokio::spawn(async move {
            if let Err(error) = question.await {
                say(format_args!("question for {server}: {error}"));
            }
            drop(place);
        });
    }

    async fn datagram(
        self,
        message: Vec<u8>,
        from: SocketAddr,
        answers: Arc<UdpSocket>,
    ) -> io::Result<()> {
        let work = async {
            let mut host = self.ask(Way::Datagram).await?;
            send(&mut host, &message).await?;
            let answer = receive(&mut host).await?;
            answers.send_to(&answer, from).await.map(drop)
        };
        // The one who asked does not wait that long either.
        timeout(PATIENCE, work).await.unwrap_or(Ok(()))
    }

    async fn stream(self, mut client: TcpStream) -> io::Result<()> {
        let mut host = self.ask(Way::Stream).await?;
        let copied = copy_bidirectional(&mut client, &mut host).await;
        // That one side has hung up is the usual end.
        let _ = host.shutdown().await;
        drop(copied);
        Ok(())
    }

    async fn ask(&self, way: Way) -> io::Result<Connection> {
        let mut connection = self.transport.dial_names()?.answered().await?;
        ask(&mut connection, way, self.server).await?;
        Ok(connection)
    }
}
