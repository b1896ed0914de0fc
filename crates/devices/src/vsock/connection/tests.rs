//! A connection between a model of a guest's socket and a model of a unix
//! stream, driven in every order proptest can think of.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::credit::Overrun;
use super::*;

const WINDOW: u32 = 64;
const GUEST_BUFFER: u32 = 48;
const PIPE: usize = 24;

#[derive(Debug, Clone, Copy)]
enum Step {
    HostWrites(usize),
    HostReads(usize),
    HostShuts,
    HostCloses,
    GuestWrites(usize),
    GuestReads(usize),
    GuestShuts,
    GuestCloses,
    /// The device takes one packet of the guest.
    DeviceTakes,
    /// The device fills one receive buffer of the guest.
    DeviceGives(usize),
    /// The guest's driver handles one filled buffer.
    GuestTakes,
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    prop_oneof![
        6 => (1usize..40).prop_map(HostWrites),
        6 => (1usize..40).prop_map(HostReads),
        6 => (1usize..40).prop_map(GuestWrites),
        6 => (1usize..40).prop_map(GuestReads),
        10 => Just(DeviceTakes),
        10 => (1usize..40).prop_map(DeviceGives),
        10 => Just(GuestTakes),
        1 => Just(HostShuts),
        1 => Just(GuestShuts),
    ]
}

fn step_with_closes() -> impl Strategy<Value = Step> {
    prop_oneof![20 => step(), 1 => Just(Step::HostCloses), 1 => Just(Step::GuestCloses)]
}

/// Bytes that differ enough to show loss, doubling and disorder.
#[derive(Default)]
struct Source(u32);

impl Iterator for Source {
    type Item = u8;
    fn next(&mut self) -> Option<u8> {
        self.0 += 1;
        Some((self.0.wrapping_mul(2_654_435_761) >> 24) as u8)
    }
}

/// A unix stream of bounded size, and the host process at its other end.
#[derive(Default)]
struct HostModel {
    inbound: VecDeque<u8>,
    outbound: VecDeque<u8>,
    source: Source,
    wrote: Vec<u8>,
    read: Vec<u8>,
    shut: bool,
    closed: bool,
    /// The device shut its sending side.
    saw_end: bool,
}

/// A socket as Linux' virtio transport keeps it.
#[derive(Default)]
struct GuestModel {
    source: Source,
    wrote: Vec<u8>,
    read: Vec<u8>,
    buffer: VecDeque<u8>,
    sent: u32,
    forwarded: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
    established: bool,
    shut: bool,
    closed: bool,
    peer_shutdown: u32,
    dead: bool,
}

struct World {
    connection: Connection,
    over: bool,
    resets: usize,
    host: HostModel,
    guest: GuestModel,
    to_guest: VecDeque<(Header, Vec<u8>)>,
    to_device: VecDeque<(Header, Vec<u8>)>,
}

fn blank(op: Op) -> Header {
    Header {
        src_cid: 3,
        dst_cid: 2,
        src_port: 1,
        dst_port: 1,
        len: 0,
        kind: 1,
        op: op as u16,
        flags: 0,
        buf_alloc: GUEST_BUFFER,
        fwd_cnt: 0,
    }
}

impl World {
    fn new(host_asks: bool) -> World {
        let connection = if host_asks {
            Connection::to_guest(WINDOW)
        } else {
            Connection::from_guest(WINDOW, &blank(Op::Request))
        };
        let mut world = World {
            connection,
            over: false,
            resets: 0,
            host: HostModel::default(),
            guest: GuestModel::default(),
            to_guest: VecDeque::new(),
            to_device: VecDeque::new(),
        };
        world.settle();
        world
    }

    fn guest_sends(&mut self, op: Op, flags: u32, bytes: Vec<u8>) {
        let header = Header {
            len: bytes.len() as u32,
            flags,
            fwd_cnt: self.guest.forwarded,
            ..blank(op)
        };
        self.to_device.push_back((header, bytes));
    }

    /// What the muxer does after each input.
    fn settle(&mut self) {
        if self.over {
            return;
        }
        while let Some(bytes) = self.connection.writable_backlog() {
            let bytes = bytes.to_vec();
            let took = self.write_to_host(&bytes);
            match took {
                Some(0) => self.connection.host_full(),
                Some(count) => self.connection.backlog_delivered(count),
                None => self.connection.host_deaf(),
            }
        }
        self.connection.owes_read_shutdown();
        if self.connection.owes_write_shutdown() {
            self.host.saw_end = true;
        }
        if self.connection.owes_reset() {
            self.to_guest.push_back((blank(Op::Reset), Vec::new()));
            self.resets += 1;
            self.connection.depart();
        }
        self.over = self.connection.is_over();
    }

    /// How many bytes the stream takes; none at all once its reader has left.
    fn write_to_host(&mut self, bytes: &[u8]) -> Option<usize> {
        assert!(!self.host.saw_end, "wrote after the end");
        if self.host.closed {
            return None;
        }
        let count = bytes.len().min(PIPE - self.host.inbound.len());
        self.host.inbound.extend(&bytes[..count]);
        Some(count)
    }

    fn device_takes(&mut self) {
        let Some((header, bytes)) = self.to_device.pop_front() else {
            return;
        };
        if self.connection.is_gone() {
            return;
        }
        match self
            .connection
            .packet(&header)
            .expect("a good guest breaks no rule")
        {
            Verdict::Done | Verdict::Answered => {}
            Verdict::Deliver => {
                let mut rest = &bytes[..];
                while self.connection.takes_directly() && !rest.is_empty() {
                    match self.write_to_host(rest) {
                        Some(0) => self.connection.host_full(),
                        Some(count) => {
                            self.connection.delivered(count);
                            rest = &rest[count..];
                        }
                        None => self.connection.host_deaf(),
                    }
                }
                let mut rest = rest.to_vec();
                if !rest.is_empty() {
                    self.connection
                        .queue(&VolatileSlice::from(rest.as_mut_slice()));
                }
            }
        }
        self.settle();
    }

    fn device_gives(&mut self, room: usize) -> bool {
        if self.over {
            return false;
        }
        let Some(mut packet) = self.connection.next_packet() else {
            return false;
        };
        let mut bytes = Vec::new();
        if let Packet::Data { limit } = &mut packet {
            let count = room.min(*limit as usize).min(self.host.outbound.len());
            bytes = self.host.outbound.drain(..count).collect();
            if count == 0 {
                if self.host.shut || self.host.closed {
                    self.connection.host_finished();
                } else {
                    self.connection.host_dry();
                }
                self.settle();
                return true;
            }
            *limit = count as u32;
        }
        self.connection.sent(packet);
        let (buf_alloc, fwd_cnt) = self.connection.announce();
        let (op, flags) = match packet {
            Packet::Control { op, flags } => (op, flags),
            Packet::Data { .. } => (Op::Data, 0),
        };
        let header = Header {
            flags,
            len: bytes.len() as u32,
            buf_alloc,
            fwd_cnt,
            ..blank(op)
        };
        self.to_guest.push_back((header, bytes));
        self.settle();
        true
    }

    fn guest_takes(&mut self) {
        let Some((header, bytes)) = self.to_guest.pop_front() else {
            return;
        };
        if self.guest.dead {
            return;
        }
        let op = Op::from_wire(header.op).unwrap();
        if op == Op::Reset {
            self.guest.dead = true;
            return;
        }
        self.guest.peer_alloc = header.buf_alloc;
        self.guest.peer_forwarded = header.fwd_cnt;
        match op {
            Op::Request => {
                self.guest.established = true;
                self.guest_sends(Op::Response, 0, Vec::new());
            }
            Op::Response => self.guest.established = true,
            Op::Data => {
                assert!(
                    self.guest.peer_shutdown & SHUTDOWN_SEND == 0,
                    "data after the end"
                );
                self.guest.buffer.extend(&bytes);
                assert!(
                    self.guest.buffer.len() <= GUEST_BUFFER as usize,
                    "credit exceeded"
                );
            }
            Op::Shutdown => {
                self.guest.peer_shutdown |= header.flags;
                if self.guest.peer_shutdown == SHUTDOWN_BOTH && self.guest.buffer.is_empty() {
                    self.guest.dead = true;
                    self.guest_sends(Op::Reset, 0, Vec::new());
                }
            }
            Op::CreditRequest => self.guest_sends(Op::CreditUpdate, 0, Vec::new()),
            Op::CreditUpdate => {}
            Op::Reset => unreachable!(),
        }
    }

    fn guest_writes(&mut self, count: usize) {
        let guest = &mut self.guest;
        let able = guest.established && !guest.shut && !guest.closed && !guest.dead;
        if !able || guest.peer_shutdown & SHUTDOWN_RECEIVE != 0 {
            return;
        }
        let credit = guest.peer_alloc - guest.sent.wrapping_sub(guest.peer_forwarded);
        let bytes: Vec<u8> = guest
            .source
            .by_ref()
            .take(count.min(credit as usize))
            .collect();
        if bytes.is_empty() {
            return;
        }
        guest.sent = guest.sent.wrapping_add(bytes.len() as u32);
        guest.wrote.extend(&bytes);
        self.guest_sends(Op::Data, 0, bytes);
    }

    fn guest_reads(&mut self, count: usize) {
        let guest = &mut self.guest;
        let count = count.min(guest.buffer.len());
        guest.read.extend(guest.buffer.drain(..count));
        guest.forwarded = guest.forwarded.wrapping_add(count as u32);
        if count > 0 && !guest.dead {
            self.guest_sends(Op::CreditUpdate, 0, Vec::new());
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::HostWrites(count) => {
                if !self.host.shut && !self.host.closed && !self.over {
                    let count = count.min(PIPE - self.host.outbound.len());
                    let bytes: Vec<u8> = self.host.source.by_ref().take(count).collect();
                    self.host.wrote.extend(&bytes);
                    self.host.outbound.extend(bytes);
                    self.connection.host_readable();
                }
            }
            Step::HostReads(count) => {
                let count = count.min(self.host.inbound.len());
                self.host.read.extend(self.host.inbound.drain(..count));
                if count > 0 && !self.over {
                    self.connection.host_writable();
                }
            }
            Step::HostShuts => {
                self.host.shut = true;
                self.connection.host_readable();
            }
            Step::HostCloses => {
                self.host.closed = true;
                self.host.inbound.clear();
                self.connection.host_readable();
                self.connection.host_deaf();
            }
            Step::GuestWrites(count) => self.guest_writes(count),
            Step::GuestReads(count) => self.guest_reads(count),
            Step::GuestShuts => {
                let guest = &mut self.guest;
                if guest.established && !guest.shut && !guest.closed && !guest.dead {
                    guest.shut = true;
                    self.guest_sends(Op::Shutdown, SHUTDOWN_SEND, Vec::new());
                }
            }
            Step::GuestCloses => {
                let guest = &mut self.guest;
                if guest.established && !guest.closed && !guest.dead {
                    guest.closed = true;
                    if guest.peer_shutdown == SHUTDOWN_BOTH {
                        guest.dead = true;
                        self.guest_sends(Op::Reset, 0, Vec::new());
                    } else {
                        self.guest_sends(Op::Shutdown, SHUTDOWN_BOTH, Vec::new());
                    }
                }
            }
            Step::DeviceTakes => self.device_takes(),
            Step::DeviceGives(room) => {
                self.device_gives(room);
            }
            Step::GuestTakes => self.guest_takes(),
        }
        self.settle();
        assert!(
            self.connection.backlog_len() <= WINDOW as usize,
            "backlog beyond the window"
        );
    }

    /// Lets everything come to rest with both sides reading.
    fn run_dry(&mut self) {
        loop {
            let moving = self.connection.next_packet().is_some() && !self.over;
            let waiting = self.to_device.len() + self.to_guest.len();
            let unread = self.guest.buffer.len() + self.host.inbound.len();
            if !moving && waiting + unread == 0 {
                return;
            }
            self.apply(Step::DeviceTakes);
            self.apply(Step::DeviceGives(1000));
            self.apply(Step::GuestTakes);
            self.apply(Step::GuestReads(1000));
            self.apply(Step::HostReads(1000));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever the order of events, each side reads exactly what the other
    /// wrote, and sees an end exactly if the other has ended.
    #[test]
    fn bytes_and_ends_arrive(host_asks in any::<bool>(), steps in prop::collection::vec(step(), 0..300)) {
        let mut world = World::new(host_asks);
        for step in steps {
            world.apply(step);
        }
        world.run_dry();
        prop_assert_eq!(&world.host.read, &world.guest.wrote);
        prop_assert_eq!(&world.guest.read, &world.host.wrote);
        prop_assert_eq!(world.host.saw_end, world.guest.shut);
        let guest_saw_end = world.guest.peer_shutdown & SHUTDOWN_SEND != 0;
        prop_assert_eq!(guest_saw_end, world.host.shut);
        // Both have ended: the clean disconnect completes as well, with Linux
        // at the latest when the guest's process closes the socket.
        if world.guest.shut && world.host.shut {
            prop_assert_eq!(world.guest.peer_shutdown, SHUTDOWN_BOTH);
            world.apply(Step::GuestCloses);
            world.run_dry();
            prop_assert!(world.guest.dead && world.over && world.resets == 0);
        } else {
            prop_assert!(!world.guest.dead && !world.over);
        }
    }

    /// A full close of one side loses nothing that it wrote before.
    #[test]
    fn a_close_loses_nothing_that_was_written(host_asks in any::<bool>(), steps in prop::collection::vec(step_with_closes(), 0..300)) {
        let mut world = World::new(host_asks);
        for step in steps {
            world.apply(step);
        }
        world.run_dry();
        if !world.host.closed {
            prop_assert_eq!(&world.host.read, &world.guest.wrote);
        }
        if !world.guest.closed {
            prop_assert_eq!(&world.guest.read, &world.host.wrote);
        }
        if world.guest.closed && !world.host.closed {
            prop_assert!(world.over && world.guest.dead);
            prop_assert!(world.resets <= 1);
        }
        if world.host.closed && !world.guest.closed {
            prop_assert_eq!(world.guest.peer_shutdown, SHUTDOWN_BOTH);
        }
    }

    /// Packets of any kind never panic, and the backlog keeps to the window.
    #[test]
    fn hostile_packets_are_survived(host_asks in any::<bool>(), packets in prop::collection::vec((0u16..9, any::<u32>(), 0u32..100, any::<u32>(), any::<u32>(), any::<bool>()), 0..200)) {
        let mut world = World::new(host_asks);
        for (op, flags, len, buf_alloc, fwd_cnt, give) in packets {
            let header = Header { op, flags, len, buf_alloc, fwd_cnt, ..blank(Op::Data) };
            if world.connection.is_gone() {
                break;
            }
            match world.connection.packet(&header) {
                Ok(Verdict::Deliver) => {
                    world.connection.host_full();
                    let mut bytes = vec![0; len as usize];
                    world.connection.queue(&VolatileSlice::from(bytes.as_mut_slice()));
                }
                Ok(_) => {}
                Err(_) => world.connection.depart(),
            }
            if give {
                world.device_gives(50);
            }
            prop_assert!(world.connection.backlog_len() <= WINDOW as usize);
        }
    }
}

#[test]
fn the_guest_learns_of_half_closes_in_order() {
    let mut world = World::new(false);
    world.apply(Step::HostWrites(10));
    world.apply(Step::HostShuts);
    let ops: Vec<u16> = std::iter::from_fn(|| {
        while world.device_gives(1000) {
            if let Some((header, _)) = world.to_guest.pop_front() {
                return Some(header.op);
            }
        }
        None
    })
    .collect();
    assert_eq!(
        ops,
        [Op::Response as u16, Op::Data as u16, Op::Shutdown as u16]
    );
    assert!(!world.over, "the guest may still send");
}

#[test]
fn data_beyond_the_credit_is_a_violation() {
    let mut connection = Connection::from_guest(WINDOW, &blank(Op::Request));
    let header = Header {
        len: WINDOW + 1,
        ..blank(Op::Data)
    };
    let overrun = Overrun {
        len: WINDOW + 1,
        window: WINDOW,
    };
    assert_eq!(connection.packet(&header), Err(Violation::Overrun(overrun)));
}

#[test]
fn data_after_the_guests_own_end_is_a_violation() {
    let mut connection = Connection::from_guest(WINDOW, &blank(Op::Request));
    let end = Header {
        flags: SHUTDOWN_SEND,
        ..blank(Op::Shutdown)
    };
    assert_eq!(connection.packet(&end), Ok(Verdict::Done));
    let data = Header {
        len: 1,
        ..blank(Op::Data)
    };
    assert_eq!(connection.packet(&data), Err(Violation::DataAfterShutdown));
}

#[test]
fn credit_is_asked_for_once() {
    let mut connection = Connection::from_guest(
        WINDOW,
        &Header {
            buf_alloc: 0,
            ..blank(Op::Request)
        },
    );
    let mut sent = Vec::new();
    while let Some(packet) = connection.next_packet() {
        connection.sent(packet);
        sent.push(packet);
    }
    let control = |op| Packet::Control { op, flags: 0 };
    assert_eq!(sent, [control(Op::Response), control(Op::CreditRequest)]);
    connection
        .packet(&Header {
            buf_alloc: 5,
            ..blank(Op::CreditUpdate)
        })
        .unwrap();
    assert_eq!(connection.next_packet(), Some(Packet::Data { limit: 5 }));
}
