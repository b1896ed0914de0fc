//! The host's side of the muxer: listener, clients, streams, deadlines.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, socket,
};
use tracing::{debug, warn};
use vmm_sys_util::epoll::EventSet;

use super::super::connection::Connection;
use super::super::greeting::{self, GREETING_MAX, Greeting};
use super::super::streams::{Ports, Stream, Use};
use super::Muxer;

/// Host ports for clients are given out from here on, well above those that
/// services listen at.
pub(super) const FIRST_PORT: u32 = 1 << 30;

impl Muxer {
    /// The hybrid socket has clients.
    pub fn clients_came(&mut self) {
        self.clients_wait = true;
    }

    /// Lets waiting clients in as far as the limits allow. The rest stays in
    /// the socket's own queue until a place is free.
    pub fn admit_clients(&mut self) {
        while self.clients_wait
            && !self.is_full()
            && self.streams.pending() < usize::from(self.limits.pending)
        {
            match accept(&self.listener) {
                Ok(Some(client)) => self.admit(client),
                Ok(None) => self.clients_wait = false,
                Err(err) => {
                    self.clients_wait = false;
                    warn!(%err, "cannot accept at the hybrid vsock socket");
                }
            }
        }
    }

    fn admit(&mut self, client: UnixStream) {
        match self.adopt(client, Use::Greeting) {
            Ok(slot) => self.greet(slot),
            Err(err) => warn!(%err, "cannot watch a client of the hybrid vsock socket"),
        }
    }

    /// Something happened at a host stream.
    pub fn stream_event(&mut self, slot: u16, events: EventSet) {
        let Some(stream) = self.streams.get(slot) else {
            return;
        };
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let Use::Connection(connection, _) = &mut stream.purpose else {
            return self.greet(slot);
        };
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP) || hung_up {
            connection.host_readable();
        }
        if events.contains(EventSet::OUT) {
            connection.host_writable();
        }
        if hung_up {
            connection.host_deaf();
            if connection.unanswered() {
                self.reset(slot);
            }
        }
        self.settle(slot);
    }

    /// Reads a client's line without touching the payload that may follow it.
    fn greet(&mut self, slot: u16) {
        let Some(Stream {
            socket,
            purpose: Use::Greeting,
            ..
        }) = self.streams.get(slot)
        else {
            return;
        };
        let mut line = [0; GREETING_MAX];
        let seen = match recv(socket.as_raw_fd(), &mut line, MsgFlags::MSG_PEEK) {
            Ok(0) => return self.close(slot),
            Ok(seen) => seen,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => return self.close(slot),
        };
        match Greeting::parse(&line[..seen]) {
            Greeting::Incomplete => {}
            Greeting::Malformed => {
                self.counters.refused += 1;
                debug!("client of the hybrid vsock socket sent no CONNECT line");
                self.close(slot);
            }
            Greeting::Connect { port, len } => {
                let consumed = recv(socket.as_raw_fd(), &mut line[..len], MsgFlags::empty());
                if consumed != Ok(len) {
                    return self.close(slot);
                }
                self.ask_guest(slot, port);
            }
        }
    }

    fn ask_guest(&mut self, slot: u16, guest_port: u32) {
        let ports = Ports {
            host: self.free_port(guest_port),
            guest: guest_port,
        };
        let connection = Connection::to_guest(self.window());
        let Some(stream) = self.streams.get(slot) else {
            return;
        };
        stream.purpose = Use::Connection(Box::new(connection), ports);
        stream.deadline = None;
        self.streams.bind(ports, slot);
        self.settle(slot);
    }

    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_PORT);
            if self.streams.find(Ports { host, guest }).is_none() {
                return host;
            }
        }
    }

    /// The guest accepted: the client learns its port.
    pub(super) fn answer_client(&mut self, slot: u16) {
        let Some(Stream {
            socket,
            purpose: Use::Connection(_, ports),
            ..
        }) = self.streams.get(slot)
        else {
            return;
        };
        let line = greeting::answer(ports.host);
        // The first bytes on this stream: they fit, or the client is gone.
        if !matches!((&*socket).write(line.as_bytes()), Ok(count) if count == line.len()) {
            self.reset(slot);
        }
    }

    pub(super) fn open_host(&self, port: u32) -> io::Result<UnixStream> {
        if self.is_full() {
            return Err(io::Error::other("too many connections"));
        }
        open(&self.directory, port)
    }

    /// Gives up what has waited too long.
    pub fn expire(&mut self, now: Instant) {
        self.poll.timer_expired();
        for slot in self.streams.slots() {
            let Some(stream) = self.streams.get(slot) else {
                continue;
            };
            if stream.deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            self.counters.expired += 1;
            match stream.purpose {
                Use::Greeting => self.close(slot),
                Use::Connection(..) => {
                    self.reset(slot);
                    self.settle(slot);
                }
            }
        }
        let next = self.streams.next_deadline();
        self.wake_for(next);
    }
}

fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    loop {
        match listener.accept() {
            Ok((client, _)) => {
                client.set_nonblocking(true)?;
                return Ok(Some(client));
            }
            Err(err) => match err.kind() {
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                _ => return Err(err),
            },
        }
    }
}

/// Connects to the host's listener for a port. A unix stream connects at once
/// or not at all: there is nothing to wait for.
fn open(directory: &Path, port: u32) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(&directory.join(format!("vm.vsock_{port}")))?;
    connect(stream.as_raw_fd(), &address)?;
    Ok(stream.into())
}
