//! A guest that breaks every rule: it gets resets or nothing, the device goes
//! on, and other connections do not notice.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use casemate_devices::Limits;
use casemate_devices::vsock::header::{HEADER_LEN, Header, Op, SHUTDOWN_SEND};
use casemate_devices::vsock::muxer::Counters;
use support::guest::{Framing, Guest, Key};
use support::harness::{World, memory};
use support::ring::Buffer;
use vhost_user_backend::VringT;
use vmm_sys_util::epoll::EventSet;

const KEY: Key = (1000, 50);

fn world() -> World {
    World::new(Framing::Split, false, Limits::default())
}

fn counters(world: &World) -> Counters {
    world.backend.lock().unwrap().counters().unwrap()
}

/// A connection from the guest to a service of the host.
fn connected(world: &mut World, key: Key) -> UnixStream {
    let listener = world.listen(key.1);
    world.guest.connect(key);
    world.settle();
    assert!(world.guest.sockets[&key].established);
    let stream = listener.accept().unwrap().0;
    stream.set_nonblocking(true).unwrap();
    std::fs::remove_file(world.path(&format!("vm.vsock_{}", key.1))).unwrap();
    stream
}

/// The device still serves: a byte goes each way.
fn works(world: &mut World) {
    let key = (KEY.0 + 1, KEY.1 + 1);
    let mut host = connected(world, key);
    assert_eq!(world.guest.send(key, b"ping"), 4);
    world.settle();
    let mut bytes = [0; 10];
    assert_eq!(host.read(&mut bytes).unwrap(), 4);
    host.write_all(b"pong").unwrap();
    world.settle();
    assert_eq!(world.guest.take(key, 10), b"pong");
    world.guest.close(key);
    world.settle();
    assert!(world.guest.sockets[&key].dead);
    assert_eq!(host.read(&mut bytes).unwrap(), 0);
}

fn data(world: &World, len: u32) -> Header {
    Header {
        len,
        ..world.guest.header(KEY, Op::Data)
    }
}

#[test]
fn operations_and_types_that_do_not_exist_are_reset() {
    for (op, kind) in [
        (0, 1),
        (8, 1),
        (u16::MAX, 1),
        (5, 2),
        (5, 3),
        (1, 2),
        (5, 0),
    ] {
        let mut world = world();
        let _host = connected(&mut world, KEY);
        let header = Header {
            op,
            kind,
            ..data(&world, 0)
        };
        world.guest.raw(header, &[]);
        world.settle();
        let reset = world.guest.stray.pop().expect("an answer");
        assert_eq!(
            (reset.op, reset.kind),
            (Op::Reset as u16, if kind == 1 { 1 } else { kind })
        );
        works(&mut world);
    }
}

#[test]
fn foreign_addresses_are_dropped() {
    let mut world = world();
    let _host = connected(&mut world, KEY);
    for (src_cid, dst_cid) in [(8, 2), (7, 3), (2, 7), (7, u64::MAX), (0, 2)] {
        world.guest.raw(
            Header {
                src_cid,
                dst_cid,
                ..data(&world, 3)
            },
            b"abc",
        );
    }
    world.settle();
    assert_eq!(counters(&world).foreign, 5);
    assert!(world.guest.stray.is_empty());
    assert!(!world.guest.sockets[&KEY].dead);
    works(&mut world);
}

#[test]
fn packets_for_no_connection_are_reset_but_resets_are_not() {
    let mut world = world();
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        world.guest.raw(world.guest.header(KEY, op), &[]);
    }
    world.guest.raw(world.guest.header(KEY, Op::Reset), &[]);
    world.settle();
    assert_eq!(world.guest.stray.len(), 5);
    assert!(
        world
            .guest
            .stray
            .iter()
            .all(|reset| (reset.dst_port, reset.src_port) == KEY)
    );
    works(&mut world);
}

#[test]
fn nobody_listening_is_a_refusal() {
    let mut world = world();
    world.guest.connect(KEY);
    world.settle();
    assert!(world.guest.sockets[&KEY].refused);
    assert_eq!(counters(&world).refused, 1);
    works(&mut world);
}

#[test]
fn data_beyond_the_credit_resets_the_connection_and_keeps_what_came_before() {
    let mut world = World::new(
        Framing::Joined,
        false,
        Limits {
            window: 5000,
            ..Limits::default()
        },
    );
    let mut host = connected(&mut world, KEY);
    // The host's socket takes a good deal without anyone reading: fill it up.
    let mut sent = 0;
    loop {
        match world.guest.send(KEY, &[1; 4000]) {
            0 => break,
            count => sent += count,
        }
        world.settle();
    }
    assert!(world.backend.lock().unwrap().backlog() > 0);
    world.guest.raw(data(&world, 4000), &[2; 4000]);
    world.settle();
    assert_eq!(counters(&world).violations, 1);
    assert!(world.guest.sockets[&KEY].dead);
    let mut received = 0;
    loop {
        let mut bytes = [0; 65536];
        match host.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => {
                assert!(bytes[..count].iter().all(|byte| *byte == 1));
                received += count;
            }
            Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::WouldBlock),
        }
        world.settle();
    }
    assert_eq!(received, sent);
    assert_eq!(world.backend.lock().unwrap().open_streams(), 0);
    works(&mut world);
}

#[test]
fn a_packet_shorter_than_it_says_resets_the_connection() {
    let mut world = world();
    let _host = connected(&mut world, KEY);
    world.guest.raw(data(&world, 100), b"only this");
    world.settle();
    assert_eq!(counters(&world).violations, 1);
    works(&mut world);
}

#[test]
fn a_second_request_replaces_the_first() {
    let mut world = world();
    let listener = world.listen(KEY.1);
    world.guest.connect(KEY);
    world.settle();
    let mut first = listener.accept().unwrap().0;
    world.guest.connect(KEY);
    world.settle();
    let _second = listener.accept().unwrap().0;
    assert!(world.guest.sockets[&KEY].established);
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(world.backend.lock().unwrap().open_streams(), 1);
}

/// Chains that break the rules of the ring, one by one, on the transmit queue.
#[test]
fn malformed_transmit_chains_are_dropped() {
    let len = HEADER_LEN as u32;
    let good = Buffer {
        address: 0x30_0000,
        len,
        writable: false,
    };
    let chains: [&[Buffer]; 7] = [
        &[Buffer {
            len: len - 1,
            ..good
        }],
        &[Buffer { len: 0, ..good }],
        &[Buffer {
            writable: true,
            ..good
        }],
        &[Buffer {
            address: 0x40_0000,
            ..good
        }],
        &[Buffer {
            address: u64::MAX - 10,
            ..good
        }],
        &[Buffer {
            address: 0x40_0000 - 10,
            ..good
        }],
        &[
            Buffer { len: 10, ..good },
            Buffer {
                writable: true,
                ..good
            },
        ],
    ];
    let mut world = world();
    for chain in chains {
        world.guest.transmit.offer(chain);
        world.event(1, EventSet::IN);
    }
    assert_eq!(counters(&world).bad_chains, chains.len() as u64);
    world.settle();
    works(&mut world);
}

/// A payload whose later pieces lie outside of memory, or turn writable.
#[test]
fn malformed_payload_chains_reset_the_connection() {
    let good = Buffer {
        address: 0x30_0000,
        len: HEADER_LEN as u32,
        writable: false,
    };
    for bad in [
        Buffer {
            address: 0x50_0000,
            len: 100,
            writable: false,
        },
        Buffer {
            address: 0x31_0000,
            len: 100,
            writable: true,
        },
        Buffer {
            address: 0x31_0000,
            len: 99,
            writable: false,
        },
    ] {
        let mut world = world();
        let _host = connected(&mut world, KEY);
        let header = data(&world, 100);
        world.guest.transmit.write(good.address, &header.to_bytes());
        world.guest.transmit.offer(&[good, bad]);
        world.event(1, EventSet::IN);
        assert_eq!(counters(&world).violations, 1);
        world.settle();
        works(&mut world);
    }
}

#[test]
fn descriptor_loops_and_wild_indices_end() {
    let mut world = world();
    let one = Buffer {
        address: 0x30_0000,
        len: 1,
        writable: false,
    };
    // 62 → 63 → 62 …
    world.guest.transmit.write_descriptor(62, one, 1, 63);
    world.guest.transmit.write_descriptor(63, one, 1, 62);
    for head in [62, 63, 64, 1000, u16::MAX] {
        world.guest.transmit.publish(head);
        world.event(1, EventSet::IN);
    }
    assert!(counters(&world).bad_chains >= 2);
    // An available index far ahead of what the ring holds.
    for index in [500, 40_000, u16::MAX] {
        world.guest.transmit.set_available_index(index);
        world.event(1, EventSet::IN);
    }
}

#[test]
fn receive_buffers_that_cannot_be_used_are_given_back() {
    let memory = memory();
    let guest = Guest::new(&memory, Framing::Joined, false);
    // All descriptors are taken: turn some of the buffers bad.
    let bad = [
        Buffer {
            address: 0x10_0000,
            len: 10,
            writable: true,
        },
        Buffer {
            address: 0x10_0000,
            len: 1500,
            writable: false,
        },
        Buffer {
            address: 0x50_0000,
            len: 1500,
            writable: true,
        },
        Buffer {
            address: guest.receive_address(3),
            len: HEADER_LEN as u32,
            writable: true,
        },
    ];
    for (index, buffer) in bad.into_iter().enumerate() {
        guest.receive.write_descriptor(
            index as u16,
            buffer,
            if buffer.writable { 2 } else { 0 },
            0,
        );
    }
    let mut world = World::with_guest(memory, guest, Limits::default());
    works(&mut world);
    assert_eq!(
        counters(&world).bad_chains,
        3,
        "a header alone fits into the fourth"
    );
}

/// Without receive buffers, resets wait; a bounded number of them.
#[test]
fn replies_do_not_pile_up() {
    let mut world = world();
    world.rings[0].set_queue_ready(false);
    for _ in 0..2000 {
        let header = world.guest.header(KEY, Op::Data);
        world.guest.raw(header, &[]);
        world.turn();
    }
    let unknown = counters(&world).unknown;
    assert!(
        (200..300).contains(&unknown),
        "{unknown} packets were taken"
    );
    // Once there is room again, everything is answered.
    world.rings[0].set_queue_ready(true);
    world.event(0, EventSet::IN);
    world.settle();
    assert_eq!(counters(&world).unknown, 2000);
    assert_eq!(world.guest.stray.len(), 2000);
    works(&mut world);
}

/// A guest that opens all the connections it can is refused the rest, and a
/// guest that closes them gets new ones.
#[test]
fn connections_are_limited() {
    let limits = Limits {
        connections: 10,
        ..Limits::default()
    };
    let mut world = World::new(Framing::Split, true, limits);
    let listener = world.listen(50);
    for port in 0..15 {
        world.guest.connect((port, 50));
        world.settle();
    }
    let refused = world
        .guest
        .sockets
        .values()
        .filter(|socket| socket.refused)
        .count();
    assert_eq!(refused, 5);
    world.guest.close((0, 50));
    world.settle();
    world.guest.connect((20, 50));
    world.settle();
    assert!(world.guest.sockets[&(20, 50)].established);
    drop(listener);
}

/// Backlogs of all connections together stay within the limit.
#[test]
fn stalled_hosts_cost_a_bounded_amount_of_memory() {
    let limits = Limits {
        connections: 20,
        window: 8000,
        memory: 60_000,
        ..Limits::default()
    };
    let mut world = World::new(Framing::Joined, false, limits);
    let mut hosts = Vec::new();
    for port in 0..20 {
        hosts.push(connected(&mut world, (port, 50)));
    }
    for _ in 0..200 {
        for port in 0..20 {
            world.guest.send((port, 50), &[3; 4000]);
        }
        world.settle();
        assert!(world.backend.lock().unwrap().backlog() <= 60_000);
    }
    assert!(
        world.backend.lock().unwrap().backlog() > 50_000,
        "it was put to the test"
    );
    assert_eq!(counters(&world), Counters::default());
}

/// Silence after our full shutdown does not keep the connection for ever.
#[test]
fn a_guest_that_does_not_confirm_the_end_is_given_up() {
    let patience = Duration::from_millis(50);
    let mut world = World::new(
        Framing::Split,
        false,
        Limits {
            patience,
            ..Limits::default()
        },
    );
    let host = connected(&mut world, KEY);
    // The guest's buffer is not empty, so it does not confirm.
    (&host).write_all(b"unread").unwrap();
    world.settle();
    world.guest.shut(KEY, SHUTDOWN_SEND);
    drop(host);
    world.settle();
    assert_eq!(world.backend.lock().unwrap().open_streams(), 1);
    std::thread::sleep(2 * patience);
    world.settle();
    assert_eq!(world.backend.lock().unwrap().open_streams(), 0);
    assert_eq!(counters(&world).expired, 1);
    assert_eq!(
        world.guest.stray.pop().map(|header| header.op),
        Some(Op::Reset as u16)
    );
    works(&mut world);
}
