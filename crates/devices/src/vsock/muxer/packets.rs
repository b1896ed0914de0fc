//! The guest's side of the muxer: the transmit and the receive queue.

use std::io;
use std::os::unix::net::UnixStream;

use tracing::debug;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::super::chain::{BadChain, Cursor};
use super::super::connection::{Connection, Packet};
use super::super::header::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use super::super::streams::{Ports, Stream, Use};
use super::super::verdict::{Verdict, Violation};
use super::Muxer;

/// Resets that may wait for a receive buffer before transmission stops.
const RESETS_MAX: usize = 256;

impl Muxer {
    /// Whether another packet may be taken: a guest that offers no receive
    /// buffers must not make replies pile up (virtio 1.2, 5.10.6.4).
    pub fn accepts_packets(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// Takes one packet off the transmit queue.
    pub fn packet(&mut self, mut chain: Cursor<'_>) {
        let header = match chain.read_header() {
            Ok(header) => header,
            Err(err) => return self.bad_chain(err),
        };
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            self.counters.foreign += 1;
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        if header.kind != TYPE_STREAM {
            return self.refuse(&header);
        }
        if header.op == Op::Request as u16 {
            return self.request(ports, &header);
        }
        match self.streams.find(ports) {
            Some(slot) => self.deliver(slot, &header, chain),
            None => self.refuse(&header),
        }
    }

    /// Counts a chain that breaks the rules of the ring.
    pub fn bad_chain(&mut self, err: BadChain) {
        self.counters.bad_chains += 1;
        debug!(%err, "guest sent a malformed descriptor chain");
    }

    /// Answers a packet nobody takes. A reset is not answered by a reset; two
    /// of them may well have crossed.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset as u16 {
            self.counters.unknown += 1;
            self.resets.push_back(header.reset());
        }
    }

    /// The guest asks for a port of the host.
    fn request(&mut self, ports: Ports, header: &Header) {
        if let Some(slot) = self.streams.find(ports) {
            // The guest uses the pair anew: it has forgotten the old connection.
            if let Some((_, connection)) = self.connection(slot) {
                connection.depart();
            }
            self.settle(slot);
        }
        // A reset for the old one would hit the new one.
        self.resets
            .retain(|reset| (reset.src_port, reset.dst_port) != (ports.host, ports.guest));
        let opened = self.open_host(ports.host).and_then(|socket| {
            let connection = Connection::from_guest(self.window(), header);
            self.adopt(socket, Use::Connection(Box::new(connection), ports))
        });
        match opened {
            Ok(slot) => self.settle(slot),
            Err(err) => {
                self.counters.refused += 1;
                debug!(port = ports.host, %err, "guest's connection refused");
                self.resets.push_back(header.reset());
            }
        }
    }

    fn deliver(&mut self, slot: u16, header: &Header, mut chain: Cursor<'_>) {
        let Some((socket, connection)) = self.connection(slot) else {
            return;
        };
        let outcome = match connection.packet(header) {
            Ok(Verdict::Deliver) => payload(socket, connection, header.len, &mut chain),
            Ok(Verdict::Answered) => {
                self.answer_client(slot);
                Ok(())
            }
            Ok(Verdict::Done) => Ok(()),
            Err(violation) => Err(violation),
        };
        if let Err(violation) = outcome {
            self.counters.violations += 1;
            debug!(%violation, port = header.dst_port, "guest's connection reset");
            self.reset(slot);
        }
        self.settle(slot);
    }

    /// Whether a receive buffer could be put to use.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Puts the next packet into a receive buffer. Says how many bytes were
    /// written; none if there turned out to be nothing to send.
    pub fn fill(&mut self, chain: Cursor<'_>) -> Result<Option<u32>, BadChain> {
        let mut header_at = chain.clone();
        let mut data_at = chain;
        data_at.skip_header()?;
        if let Some(reset) = self.resets.pop_front() {
            header_at.write_header(&reset)?;
            return Ok(Some(HEADER_LEN as u32));
        }
        while let Some(slot) = self.ready.pop_front() {
            if let Some(stream) = self.streams.get(slot) {
                stream.queued = false;
            }
            let header = self.next_from(slot, data_at.clone());
            self.settle(slot);
            if let Some(header) = header? {
                header_at.write_header(&header)?;
                return Ok(Some(HEADER_LEN as u32 + header.len));
            }
        }
        Ok(None)
    }

    /// The next packet of one connection, its payload already in place.
    fn next_from(&mut self, slot: u16, mut room: Cursor<'_>) -> Result<Option<Header>, BadChain> {
        let guest_cid = self.guest_cid;
        let Some(Stream {
            socket,
            purpose: Use::Connection(connection, ports),
            ..
        }) = self.streams.get(slot)
        else {
            return Ok(None);
        };
        let Some(mut packet) = connection.next_packet() else {
            return Ok(None);
        };
        if let Packet::Data { limit } = &mut packet {
            *limit = read(socket, connection, *limit, &mut room)?;
            if *limit == 0 {
                return Ok(None);
            }
        }
        connection.sent(packet);
        let (buf_alloc, fwd_cnt) = connection.announce();
        let (op, flags, len) = match packet {
            Packet::Control { op, flags } => (op, flags, 0),
            Packet::Data { limit } => (Op::Data, 0, limit),
        };
        Ok(Some(Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc,
            fwd_cnt,
        }))
    }
}

/// Passes a payload on, straight out of guest memory as far as the host takes it.
fn payload(
    socket: &UnixStream,
    connection: &mut Connection,
    len: u32,
    chain: &mut Cursor<'_>,
) -> Result<(), Violation> {
    let mut left = len as usize;
    while left > 0 {
        let Ok(Some(piece)) = chain.piece(left) else {
            return Err(Violation::Truncated);
        };
        left -= piece.len();
        write(socket, connection, piece);
    }
    Ok(())
}

fn write(mut socket: &UnixStream, connection: &mut Connection, mut piece: VolatileSlice<'_>) {
    while connection.takes_directly() && !piece.is_empty() {
        match io_result(socket.write_volatile(&piece)) {
            Ok(count) => {
                connection.delivered(count);
                piece = piece
                    .offset(count)
                    .expect("a write takes no more than it is given");
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => connection.host_full(),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => connection.host_deaf(),
        }
    }
    if !piece.is_empty() {
        connection.queue(&piece);
    }
}

/// Reads from the host straight into a receive buffer, at most `limit` bytes.
fn read(
    mut socket: &UnixStream,
    connection: &mut Connection,
    limit: u32,
    room: &mut Cursor<'_>,
) -> Result<u32, BadChain> {
    let mut total = 0;
    while total < limit as usize {
        let Some(mut piece) = room.piece(limit as usize - total)? else {
            break;
        };
        let outcome = loop {
            match io_result(socket.read_volatile(&mut piece)) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        let filled = matches!(outcome, Ok(count) if count == piece.len());
        match outcome {
            Ok(0) => connection.host_finished(),
            Ok(count) => total += count,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => connection.host_dry(),
            Err(_) => {
                connection.host_finished();
                connection.host_deaf();
            }
        }
        if !filled {
            return Ok(total as u32);
        }
    }
    if total == 0 {
        return Err(BadChain::Short);
    }
    Ok(total as u32)
}

fn io_result(result: Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    result.map_err(|err| match err {
        VolatileMemoryError::IOError(err) => err,
        err => io::Error::other(err),
    })
}
