//! One stream between a guest socket and a unix stream of the host.
//!
//! No I/O happens here. Packets of the guest and events of the host socket go
//! in; what has to be done comes out of questions ([`Connection::next_packet`],
//! [`Connection::owes_write_shutdown`], …) that the muxer asks after each input.
//!
//! ```text
//!   host asks:  Requested ──RESPONSE──► Established ─┐
//!   guest asks: Accepted ──we answer──► Established ─┴─► Gone
//! ```
//! *Gone* means that the guest knows the connection no more, so its port pair
//! is free. The connection itself lives until the host has taken every byte.
//!
//! Each direction ends by itself: end-of-file of the host becomes SHUTDOWN(SEND)
//! after its last byte; SHUTDOWN(SEND) of the guest becomes a write shutdown of
//! the unix stream after the guest's last byte. Once both have ended the clean
//! disconnect of virtio 1.2, 5.10.6.6 follows: a full SHUTDOWN answered by RST.

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::backlog::Backlog;
use super::credit::Credit;
use super::header::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::verdict::{Verdict, Violation};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host asked; the guest has not answered.
    Requested {
        sent: bool,
    },
    /// The guest asked; our answer waits for a receive buffer.
    Accepted,
    Established,
    Gone,
}

/// The next packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// A packet without payload.
    Control {
        /// Its operation.
        op: Op,
        /// Its flags.
        flags: u32,
    },
    /// Payload read from the host stream, at most this many bytes.
    Data {
        /// What the guest's credit allows.
        limit: u32,
    },
}

/// The unix stream as the connection sees it.
#[derive(Debug, Clone)]
struct Host {
    /// Reading may give something.
    readable: bool,
    /// Writing may take something.
    writable: bool,
    /// End-of-file has been read.
    finished: bool,
    /// It takes no more bytes.
    deaf: bool,
    read_shut: bool,
    write_shut: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    credit: Credit,
    backlog: Backlog,
    host: Host,
    /// SHUTDOWN flags the guest sent. They are permanent (virtio 1.2, 5.10.6.6).
    guest_shutdown: u32,
    /// SHUTDOWN flags we sent.
    told_shutdown: u32,
    owes_credit: bool,
    credit_asked: bool,
    /// Both sides have agreed to it.
    opened: bool,
}

impl Connection {
    /// A connection that a client on the host asks for.
    pub fn to_guest(window: u32) -> Connection {
        Connection::new(Phase::Requested { sent: false }, window)
    }

    /// A connection that the guest asks for, and to which the host agreed.
    pub fn from_guest(window: u32, request: &Header) -> Connection {
        let mut connection = Connection::new(Phase::Accepted, window);
        connection.credit.learn(request.buf_alloc, request.fwd_cnt);
        connection
    }

    fn new(phase: Phase, window: u32) -> Connection {
        Connection {
            phase,
            credit: Credit::new(window),
            backlog: Backlog::default(),
            host: Host {
                readable: true,
                writable: true,
                finished: false,
                deaf: false,
                read_shut: false,
                write_shut: false,
            },
            guest_shutdown: 0,
            told_shutdown: 0,
            owes_credit: false,
            credit_asked: false,
            opened: false,
        }
    }

    // ---- what the guest sends ----

    /// Takes a packet of the guest. After a violation the muxer resets.
    pub fn packet(&mut self, header: &Header) -> Result<Verdict, Violation> {
        let unexpected = |state| Violation::Unexpected {
            op: header.op,
            state,
        };
        let op = Op::from_wire(header.op).ok_or(unexpected("open"))?;
        self.credit.learn(header.buf_alloc, header.fwd_cnt);
        if self.credit.available() > 0 {
            self.credit_asked = false;
        }
        if let Phase::Requested { .. } = self.phase {
            return match op {
                Op::Response => {
                    self.phase = Phase::Established;
                    self.opened = true;
                    Ok(Verdict::Answered)
                }
                Op::Reset => {
                    self.phase = Phase::Gone;
                    Ok(Verdict::Done)
                }
                _ => Err(unexpected("waiting for its answer")),
            };
        }
        match op {
            Op::Data => return self.data(header.len),
            Op::Reset => self.phase = Phase::Gone,
            Op::Shutdown => self.guest_shutdown |= header.flags & SHUTDOWN_BOTH,
            Op::CreditRequest => self.owes_credit = true,
            Op::CreditUpdate => {}
            Op::Request | Op::Response => return Err(unexpected("established")),
        }
        Ok(Verdict::Done)
    }

    fn data(&mut self, len: u32) -> Result<Verdict, Violation> {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Err(Violation::DataAfterShutdown);
        }
        self.credit.receive(len)?;
        if self.host.deaf {
            // Was under way when the host left.
            self.credit.forward(len);
            return Ok(Verdict::Done);
        }
        Ok(Verdict::Deliver)
    }

    /// Nothing more passes between this connection and the guest.
    pub fn depart(&mut self) {
        self.phase = Phase::Gone;
    }

    // ---- what happens on the host's stream ----

    /// There may be something to read.
    pub fn host_readable(&mut self) {
        self.host.readable = true;
    }

    /// There is nothing to read at present.
    pub fn host_dry(&mut self) {
        self.host.readable = false;
    }

    /// The host will write no more.
    pub fn host_finished(&mut self) {
        self.host.readable = false;
        self.host.finished = true;
    }

    /// There may be room to write.
    pub fn host_writable(&mut self) {
        self.host.writable = true;
    }

    /// There is no room to write at present.
    pub fn host_full(&mut self) {
        self.host.writable = false;
    }

    /// The host will read no more: what waits for it is void.
    pub fn host_deaf(&mut self) {
        self.host.deaf = true;
        let dropped = self.backlog.clear();
        self.credit.forward(dropped as u32);
    }

    /// Whether payload of the guest can go to the stream without waiting.
    pub fn takes_directly(&self) -> bool {
        self.backlog.is_empty() && self.host.writable && !self.host.deaf
    }

    /// The stream took bytes of a packet.
    pub fn delivered(&mut self, count: usize) {
        self.credit.forward(count as u32);
    }

    /// Keeps what the stream did not take.
    pub fn queue<B: BitmapSlice>(&mut self, piece: &VolatileSlice<'_, B>) {
        if self.host.deaf {
            self.credit.forward(piece.len() as u32);
        } else {
            self.backlog.append(piece);
        }
    }

    /// Bytes to write now.
    pub fn writable_backlog(&self) -> Option<&[u8]> {
        (self.host.writable && !self.backlog.is_empty()).then(|| self.backlog.pending())
    }

    /// Bytes that wait for the host.
    pub fn backlog_len(&self) -> usize {
        self.backlog.len()
    }

    /// The stream took bytes of the backlog.
    pub fn backlog_delivered(&mut self, count: usize) {
        self.backlog.consume(count);
        self.credit.forward(count as u32);
    }

    /// Whether the muxer must hear when the stream has room again.
    pub fn waits_for_room(&self) -> bool {
        !self.host.writable && !self.backlog.is_empty()
    }

    /// Whether the stream's sending side must be shut now. Asking does it.
    pub fn owes_write_shutdown(&mut self) -> bool {
        let owes = self.guest_sent_all() && !self.host.deaf && !self.host.write_shut;
        self.host.write_shut |= owes;
        owes
    }

    /// Whether the stream's receiving side must be shut now. Asking does it.
    pub fn owes_read_shutdown(&mut self) -> bool {
        let owes = self.guest_shutdown & SHUTDOWN_RECEIVE != 0 && !self.host.read_shut;
        self.host.read_shut |= owes;
        owes
    }

    // ---- what goes to the guest ----

    /// The next packet for the guest, if there is any now.
    pub fn next_packet(&self) -> Option<Packet> {
        let control = |op, flags| Some(Packet::Control { op, flags });
        match self.phase {
            Phase::Requested { sent: false } => return control(Op::Request, 0),
            Phase::Requested { sent: true } | Phase::Gone => return None,
            Phase::Accepted => return control(Op::Response, 0),
            Phase::Established => {}
        }
        if self.guest_shutdown == SHUTDOWN_BOTH {
            return None;
        }
        let shutdown = self.wanted_shutdown();
        if shutdown & !self.told_shutdown != 0 {
            return control(Op::Shutdown, shutdown);
        }
        if self.owes_credit || self.credit.update_due() {
            return control(Op::CreditUpdate, 0);
        }
        if !self.host.readable || self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            return None;
        }
        match self.credit.available() {
            0 if self.credit_asked => None,
            0 => control(Op::CreditRequest, 0),
            limit => Some(Packet::Data { limit }),
        }
    }

    /// The packet went out; a data packet with the bytes that were read.
    pub fn sent(&mut self, packet: Packet) {
        match packet {
            Packet::Data { limit: len } => self.credit.spend(len),
            Packet::Control { op, flags } => match op {
                Op::Request => self.phase = Phase::Requested { sent: true },
                Op::Response => {
                    self.phase = Phase::Established;
                    self.opened = true;
                }
                Op::Shutdown => self.told_shutdown |= flags,
                Op::CreditUpdate => self.owes_credit = false,
                Op::CreditRequest => self.credit_asked = true,
                Op::Reset | Op::Data => {}
            },
        }
    }

    /// `buf_alloc` and `fwd_cnt` for the packet that goes out now.
    pub fn announce(&mut self) -> (u32, u32) {
        self.credit.announce()
    }

    /// The window this connection was given.
    pub fn window(&self) -> u32 {
        self.credit.buf_alloc()
    }

    fn wanted_shutdown(&self) -> u32 {
        let sends = !self.host.finished && self.guest_shutdown & SHUTDOWN_RECEIVE == 0;
        let receives = !self.host.deaf && !self.guest_sent_all();
        if !sends && !receives {
            return SHUTDOWN_BOTH;
        }
        let mut flags = 0;
        if self.host.finished {
            flags |= SHUTDOWN_SEND;
        }
        if self.host.deaf {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags
    }

    /// The guest sends no more, and the host has all of it.
    fn guest_sent_all(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_SEND != 0 && self.backlog.is_empty()
    }

    // ---- how it ends ----

    /// Whether the guest is owed the reset that completes its full shutdown.
    pub fn owes_reset(&self) -> bool {
        self.phase != Phase::Gone && self.guest_shutdown == SHUTDOWN_BOTH && self.backlog.is_empty()
    }

    /// Whether the guest must do something within a time limit: answer the
    /// request, or answer the full shutdown.
    pub fn awaits_guest(&self) -> bool {
        match self.phase {
            Phase::Requested { .. } => true,
            Phase::Gone => false,
            _ => self.told_shutdown == SHUTDOWN_BOTH,
        }
    }

    /// Whether the guest has heard of this connection and not yet of its end.
    pub fn known_to_guest(&self) -> bool {
        !matches!(self.phase, Phase::Gone | Phase::Requested { sent: false })
    }

    /// Whether the host client still waits for its `OK`.
    pub fn unanswered(&self) -> bool {
        matches!(self.phase, Phase::Requested { .. })
    }

    /// Whether the port pair is free.
    pub fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    /// Whether the unix stream can be closed.
    pub fn is_over(&self) -> bool {
        self.is_gone() && self.backlog.is_empty()
    }

    /// Whether it was open and then broken off by a bare reset.
    pub fn was_broken_off(&self) -> bool {
        let agreed = self.guest_shutdown == SHUTDOWN_BOTH || self.told_shutdown == SHUTDOWN_BOTH;
        self.opened && !agreed
    }
}

#[cfg(test)]
mod tests;
