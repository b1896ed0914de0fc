//! The switch between the guest's packets and the host's unix streams.
//!
//! Owns every connection. Packets come in one at a time from the transmit
//! queue ([`Muxer::packet`]) and go out one at a time into receive buffers
//! ([`Muxer::fill`]), in turn over all connections that have something to say.
//!
//! Nothing the guest does makes it wait, fail or grow: payload the host cannot
//! take is bounded by credit, resets that wait for a receive buffer by
//! [`Muxer::accepts_packets`], connections by [`Limits`].

mod hosts;
mod packets;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use tracing::warn;

use super::connection::Connection;
use super::header::{HOST_CID, Header, Op, TYPE_STREAM};
use super::limits::Limits;
use super::poll::{Poll, TOKEN_LISTENER, TOKEN_STREAMS};
use super::streams::{Ports, Stream, Streams, Use};

/// What went wrong so far, most of it the guest's doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chains that break the rules of the ring.
    pub bad_chains: u64,
    /// Packets from or to a context id that is not theirs.
    pub foreign: u64,
    /// Packets that no connection takes.
    pub unknown: u64,
    /// Connections reset because the guest broke the protocol.
    pub violations: u64,
    /// Connections refused: nobody listens, or a limit is reached.
    pub refused: u64,
    /// Clients and connections given up after waiting.
    pub expired: u64,
}

/// See the module's text.
pub struct Muxer {
    guest_cid: u64,
    limits: Limits,
    /// Where `vm.vsock_<port>` is looked for.
    directory: PathBuf,
    listener: UnixListener,
    /// Clients may wait at the listener.
    clients_wait: bool,
    poll: Poll,
    streams: Streams,
    /// Slots with something for the guest, each once.
    ready: VecDeque<u16>,
    resets: VecDeque<Header>,
    next_port: u32,
    counters: Counters,
}

impl Muxer {
    /// A muxer without connections. `listener` is the hybrid socket; guest
    /// connections go to `vm.vsock_<port>` in `directory`.
    pub fn new(
        guest_cid: u64,
        limits: Limits,
        directory: PathBuf,
        listener: UnixListener,
        poll: Poll,
    ) -> io::Result<Muxer> {
        listener.set_nonblocking(true)?;
        poll.add(&listener, TOKEN_LISTENER)?;
        Ok(Muxer {
            guest_cid,
            limits,
            directory,
            listener,
            clients_wait: true,
            poll,
            streams: Streams::default(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: hosts::FIRST_PORT,
            counters: Counters::default(),
        })
    }

    /// What went wrong so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Connections and clients at present.
    pub fn open_streams(&self) -> usize {
        self.streams.count()
    }

    /// Bytes from the guest that wait for the host.
    pub fn backlog(&self) -> usize {
        self.streams
            .connections()
            .map(Connection::backlog_len)
            .sum()
    }

    /// Has the event loop come back after the events that already wait.
    pub fn put_off(&self) {
        if let Err(err) = self.poll.again() {
            warn!(%err, "vsock cannot remind itself");
        }
    }

    /// Drops every connection: the guest's driver has started anew and knows none.
    pub fn restart(&mut self) {
        self.resets.clear();
        for slot in self.streams.slots() {
            if let Some((_, connection)) = self.connection(slot) {
                connection.depart();
                self.settle(slot);
            }
        }
    }

    fn connection(&mut self, slot: u16) -> Option<(&UnixStream, &mut Connection)> {
        match self.streams.get(slot)? {
            Stream {
                socket,
                purpose: Use::Connection(connection, _),
                ..
            } => Some((socket, connection)),
            _ => None,
        }
    }

    /// Gives a socket a slot and has epoll watch it.
    fn adopt(&mut self, socket: UnixStream, purpose: Use) -> io::Result<u16> {
        let ports = match &purpose {
            Use::Connection(_, ports) => Some(*ports),
            Use::Greeting => None,
        };
        let deadline = ports
            .is_none()
            .then(|| Instant::now() + self.limits.patience);
        let slot = self.streams.insert(Stream {
            socket,
            purpose,
            deadline,
            queued: false,
            room_watched: false,
        });
        if let Some(ports) = ports {
            self.streams.bind(ports, slot);
        }
        let registered = match self.streams.get(slot) {
            Some(stream) => self.poll.add(&stream.socket, TOKEN_STREAMS + slot),
            None => Ok(()),
        };
        if let Err(err) = registered {
            self.streams.remove(slot);
            return Err(err);
        }
        self.wake_for(deadline);
        Ok(slot)
    }

    fn is_full(&self) -> bool {
        self.streams.count() >= usize::from(self.limits.connections)
    }

    fn window(&self) -> u32 {
        let committed = self
            .streams
            .connections()
            .map(|one| u64::from(one.window()))
            .sum();
        self.limits.window_beside(self.streams.count(), committed)
    }

    /// Tells the guest that this connection is no more. What the host has not
    /// read yet stays for it.
    fn reset(&mut self, slot: u16) {
        let guest_cid = self.guest_cid;
        let Some(Stream {
            purpose: Use::Connection(connection, ports),
            ..
        }) = self.streams.get(slot)
        else {
            return;
        };
        if connection.known_to_guest() {
            self.resets.push_back(reset_packet(guest_cid, *ports));
        }
        connection.depart();
    }

    /// Does what a connection's new state asks for. Follows every input.
    fn settle(&mut self, slot: u16) {
        let Some(Stream {
            socket,
            purpose: Use::Connection(connection, ports),
            ..
        }) = self.streams.get(slot)
        else {
            return;
        };
        let ports = *ports;
        write_backlog(socket, connection);
        shut(socket, connection);
        if connection.owes_reset() {
            self.reset(slot);
        }
        let Some((_, connection)) = self.connection(slot) else {
            return;
        };
        let (gone, over) = (connection.is_gone(), connection.is_over());
        if gone {
            self.streams.release(ports, slot);
        }
        if over {
            self.close(slot);
        } else {
            self.reschedule(slot);
        }
    }

    fn reschedule(&mut self, slot: u16) {
        let Some(stream) = self.streams.get(slot) else {
            return;
        };
        let Use::Connection(connection, _) = &stream.purpose else {
            return;
        };
        if !connection.awaits_guest() {
            stream.deadline = None;
        } else if stream.deadline.is_none() {
            stream.deadline = Some(Instant::now() + self.limits.patience);
        }
        if !stream.queued && connection.next_packet().is_some() {
            stream.queued = true;
            self.ready.push_back(slot);
        }
        let waits = connection.waits_for_room();
        if waits != stream.room_watched {
            stream.room_watched = waits;
            if let Err(err) = self
                .poll
                .watch_room(&stream.socket, TOKEN_STREAMS + slot, waits)
            {
                warn!(%err, "cannot watch a host stream");
            }
        }
        let deadline = stream.deadline;
        self.wake_for(deadline);
    }

    fn wake_for(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline
            && let Err(err) = self.poll.wake_at(deadline)
        {
            warn!(%err, "cannot set the deadline timer");
        }
    }

    fn close(&mut self, slot: u16) {
        let Some(stream) = self.streams.remove(slot) else {
            return;
        };
        let broken_off = match &stream.purpose {
            Use::Connection(connection, _) => connection.was_broken_off(),
            Use::Greeting => false,
        };
        if !broken_off {
            discard_unread(&stream.socket);
        }
    }
}

fn reset_packet(guest_cid: u64, ports: Ports) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: ports.host,
        dst_port: ports.guest,
        len: 0,
        kind: TYPE_STREAM,
        op: Op::Reset as u16,
        flags: 0,
        buf_alloc: 0,
        fwd_cnt: 0,
    }
}

fn write_backlog(mut socket: &UnixStream, connection: &mut Connection) {
    while let Some(bytes) = connection.writable_backlog() {
        match socket.write(bytes) {
            Ok(count) => connection.backlog_delivered(count),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => connection.host_full(),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => connection.host_deaf(),
        }
    }
}

/// Half-closes the stream as far as the guest has closed. An error means that
/// the host has closed it already, which its own event will tell.
fn shut(socket: &UnixStream, connection: &mut Connection) {
    if connection.owes_read_shutdown() {
        let _ = socket.shutdown(Shutdown::Read);
    }
    if connection.owes_write_shutdown() {
        let _ = socket.shutdown(Shutdown::Write);
    }
}

/// Empties the stream before it is closed. Linux gives a client whose bytes
/// were not read ECONNRESET instead of end-of-file, and that is for connections
/// that are broken off.
fn discard_unread(mut socket: &UnixStream) {
    let _ = socket.shutdown(Shutdown::Both);
    let mut sink = [0; 4096];
    while matches!(socket.read(&mut sink), Ok(1..)) {}
}
