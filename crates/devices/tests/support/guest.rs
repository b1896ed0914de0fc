//! A guest's vsock driver and sockets, after the manner of Linux.

use std::collections::{BTreeMap, VecDeque};

use casemate_devices::vsock::header::{
    HEADER_LEN, HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};

use super::ring::{Buffer, Memory, Ring};

pub const CID: u64 = 7;
const QUEUE_SIZE: u16 = 64;
const SLOT: u64 = 0x2000;
const RECEIVE_RING: u64 = 0x1_0000;
const TRANSMIT_RING: u64 = RECEIVE_RING + Ring::ROOM;
const RECEIVE_BUFFERS: u64 = 0x10_0000;
const TRANSMIT_BUFFERS: u64 = 0x20_0000;
/// Memory a guest needs.
pub const MEMORY: usize = 0x40_0000;

/// How the driver cuts packets into descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Header and payload apart, as Linux before 6.2.
    Split,
    /// One descriptor, as Linux since 6.2.
    Joined,
    /// As small as this, which a driver may do.
    Pieces(u32),
}

impl Framing {
    fn cut(self, address: u64, len: u32, writable: bool) -> Vec<Buffer> {
        let buffer = |at: u32, len| Buffer {
            address: address + u64::from(at),
            len,
            writable,
        };
        let header = HEADER_LEN as u32;
        match self {
            Framing::Split if len > header => {
                vec![buffer(0, header), buffer(header, len - header)]
            }
            Framing::Split | Framing::Joined => vec![buffer(0, len)],
            Framing::Pieces(size) => (0..len)
                .step_by(size as usize)
                .map(|at| buffer(at, size.min(len - at)))
                .collect(),
        }
    }

    fn descriptors(self, len: u32) -> usize {
        self.cut(0, len, false).len()
    }
}

pub type Key = (u32, u32);

/// One stream socket of the guest.
#[derive(Debug, Default)]
pub struct Socket {
    pub established: bool,
    pub refused: bool,
    /// The connection is no more.
    pub dead: bool,
    pub read: VecDeque<u8>,
    pub received: u32,
    pub buf_alloc: u32,
    forwarded: u32,
    sent: u32,
    pub peer_alloc: u32,
    peer_forwarded: u32,
    pub peer_shutdown: u32,
    pub shutdown: u32,
    pub closed: bool,
}

impl Socket {
    pub fn credit(&self) -> u32 {
        self.peer_alloc
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }
}

/// The driver, its sockets and who listens.
pub struct Guest {
    pub receive: Ring,
    pub transmit: Ring,
    pub framing: Framing,
    receive_len: u32,
    queue: VecDeque<(Header, Vec<u8>)>,
    busy_slots: Vec<Option<u16>>,
    receive_slots: BTreeMap<u16, u64>,
    pub sockets: BTreeMap<Key, Socket>,
    pub listening: Vec<u32>,
    /// Packets for no socket, and resets of all kinds.
    pub stray: Vec<Header>,
    pub buf_alloc: u32,
}

impl Guest {
    pub fn new(memory: &Memory, framing: Framing, event_idx: bool) -> Guest {
        let mut guest = Guest {
            receive: Ring::new(memory, RECEIVE_RING, QUEUE_SIZE, event_idx),
            transmit: Ring::new(memory, TRANSMIT_RING, QUEUE_SIZE, event_idx),
            framing,
            receive_len: 1500,
            queue: VecDeque::new(),
            busy_slots: vec![None; usize::from(QUEUE_SIZE)],
            receive_slots: BTreeMap::new(),
            sockets: BTreeMap::new(),
            listening: Vec::new(),
            stray: Vec::new(),
            buf_alloc: 4096,
        };
        let descriptors = framing.descriptors(guest.receive_len);
        for slot in 0..usize::from(QUEUE_SIZE) / descriptors {
            guest.offer_receive(RECEIVE_BUFFERS + slot as u64 * SLOT);
        }
        guest
    }

    /// Where the receive buffer of this descriptor lies.
    pub fn receive_address(&self, head: u16) -> u64 {
        self.receive_slots[&head]
    }

    fn offer_receive(&mut self, address: u64) -> bool {
        let (head, kick) = self
            .receive
            .offer(&self.framing.cut(address, self.receive_len, true));
        self.receive_slots.insert(head, address);
        kick
    }

    /// Queues any packet, sensible or not.
    pub fn raw(&mut self, header: Header, payload: &[u8]) {
        self.queue.push_back((header, payload.to_vec()));
    }

    pub fn header(&self, (guest, host): Key, op: Op) -> Header {
        let socket = self.sockets.get(&(guest, host));
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            len: 0,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: 0,
            buf_alloc: socket.map_or(self.buf_alloc, |socket| socket.buf_alloc),
            fwd_cnt: socket.map_or(0, |socket| socket.forwarded),
        }
    }

    fn control(&mut self, key: Key, op: Op, flags: u32) {
        let header = Header {
            flags,
            ..self.header(key, op)
        };
        self.raw(header, &[]);
    }

    fn fresh(&self) -> Socket {
        Socket {
            buf_alloc: self.buf_alloc,
            ..Socket::default()
        }
    }

    pub fn connect(&mut self, key: Key) {
        let socket = self.fresh();
        self.sockets.insert(key, socket);
        self.control(key, Op::Request, 0);
    }

    /// Sends as much as credit allows; says how much.
    pub fn send(&mut self, key: Key, bytes: &[u8]) -> usize {
        let socket = self.sockets.get_mut(&key).unwrap();
        let barred = !socket.established || socket.dead || socket.closed;
        if barred
            || socket.shutdown & SHUTDOWN_SEND != 0
            || socket.peer_shutdown & SHUTDOWN_RECEIVE != 0
        {
            return 0;
        }
        let count = bytes.len().min(socket.credit() as usize).min(4000);
        if count == 0 {
            return 0;
        }
        socket.sent = socket.sent.wrapping_add(count as u32);
        let header = Header {
            len: count as u32,
            ..self.header(key, Op::Data)
        };
        self.raw(header, &bytes[..count]);
        count
    }

    /// Takes up to this many bytes out of the receive buffer.
    pub fn take(&mut self, key: Key, count: usize) -> Vec<u8> {
        let socket = self.sockets.get_mut(&key).unwrap();
        let count = count.min(socket.read.len());
        let bytes: Vec<u8> = socket.read.drain(..count).collect();
        socket.forwarded = socket.forwarded.wrapping_add(count as u32);
        if count > 0 && !socket.dead && !socket.closed {
            self.control(key, Op::CreditUpdate, 0);
        }
        bytes
    }

    pub fn shut(&mut self, key: Key, flags: u32) {
        let socket = self.sockets.get_mut(&key).unwrap();
        if socket.dead || socket.closed || !socket.established {
            return;
        }
        socket.shutdown |= flags;
        self.control(key, Op::Shutdown, flags);
    }

    pub fn close(&mut self, key: Key) {
        let socket = self.sockets.get_mut(&key).unwrap();
        if socket.dead || socket.closed || !socket.established {
            return;
        }
        socket.closed = true;
        if socket.peer_shutdown == SHUTDOWN_BOTH {
            socket.dead = true;
            self.control(key, Op::Reset, 0);
        } else {
            self.control(key, Op::Shutdown, SHUTDOWN_BOTH);
        }
    }

    /// Handles what the device has done, and hands it what waits. Says whether
    /// receive and transmit queue want a kick.
    pub fn pump(&mut self) -> (bool, bool) {
        let mut kick_receive = false;
        while let Some((head, written)) = self.receive.take_used() {
            let address = self
                .receive_slots
                .remove(&head)
                .expect("a buffer we offered");
            let bytes = self.receive.read(address, written as usize);
            kick_receive |= self.offer_receive(address);
            if bytes.len() >= HEADER_LEN {
                let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
                assert_eq!(bytes.len(), HEADER_LEN + header.len as usize);
                self.packet(header, &bytes[HEADER_LEN..]);
            }
        }
        (kick_receive, self.flush())
    }

    fn flush(&mut self) -> bool {
        while let Some((head, written)) = self.transmit.take_used() {
            assert_eq!(written, 0, "the device wrote into a transmit buffer");
            for slot in &mut self.busy_slots {
                if *slot == Some(head) {
                    *slot = None;
                }
            }
        }
        let mut kick = false;
        while let Some((_, payload)) = self.queue.front() {
            let len = (HEADER_LEN + payload.len()) as u32;
            let free = self.busy_slots.iter().position(Option::is_none);
            let Some(slot) = free else { break };
            if self.transmit.room() < self.framing.descriptors(len) {
                break;
            }
            let (header, payload) = self.queue.pop_front().unwrap();
            let address = TRANSMIT_BUFFERS + slot as u64 * SLOT;
            self.transmit.write(address, &header.to_bytes());
            self.transmit.write(address + HEADER_LEN as u64, &payload);
            let (head, wanted) = self.transmit.offer(&self.framing.cut(address, len, false));
            self.busy_slots[slot] = Some(head);
            kick |= wanted;
        }
        kick
    }

    fn packet(&mut self, header: Header, payload: &[u8]) {
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        let key = (header.dst_port, header.src_port);
        let op = Op::from_wire(header.op).expect("a known operation");
        if op == Op::Request {
            return self.requested(key, &header);
        }
        let Some(socket) = self.sockets.get_mut(&key).filter(|socket| !socket.dead) else {
            self.stray.push(header);
            return;
        };
        socket.peer_alloc = header.buf_alloc;
        socket.peer_forwarded = header.fwd_cnt;
        match op {
            Op::Response => socket.established = true,
            Op::Reset => {
                socket.refused |= !socket.established;
                socket.dead = true;
                self.stray.push(header);
            }
            Op::Shutdown => {
                socket.peer_shutdown |= header.flags;
                if socket.peer_shutdown == SHUTDOWN_BOTH && socket.read.is_empty() {
                    socket.dead = true;
                    self.control(key, Op::Reset, 0);
                }
            }
            Op::Data => {
                assert_eq!(
                    socket.peer_shutdown & SHUTDOWN_SEND,
                    0,
                    "data after the end"
                );
                socket.received = socket.received.wrapping_add(payload.len() as u32);
                socket.read.extend(payload);
                let inside = socket.received.wrapping_sub(socket.forwarded);
                assert!(inside <= socket.buf_alloc, "credit exceeded");
            }
            // A closing socket of Linux minds nothing but the reset.
            Op::CreditRequest if !socket.closed => self.control(key, Op::CreditUpdate, 0),
            Op::CreditRequest | Op::CreditUpdate | Op::Request => {}
        }
    }

    fn requested(&mut self, key: Key, header: &Header) {
        if !self.listening.contains(&key.0) {
            return self.control(key, Op::Reset, 0);
        }
        let mut socket = self.fresh();
        socket.established = true;
        socket.peer_alloc = header.buf_alloc;
        socket.peer_forwarded = header.fwd_cnt;
        self.sockets.insert(key, socket);
        self.control(key, Op::Response, 0);
    }
}
