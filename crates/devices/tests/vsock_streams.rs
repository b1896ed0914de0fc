//! Streams through the whole device, with real unix sockets and a model of the
//! guest, in random order: what one side writes the other reads.

mod support;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use casemate_devices::Limits;
use casemate_devices::vsock::header::SHUTDOWN_SEND;
use proptest::prelude::*;
use support::guest::{Framing, Key};
use support::harness::World;

const CONNECTIONS: usize = 3;
const HOST_PORT: u32 = 50;
const GUEST_PORT: u32 = 60;

#[derive(Debug, Clone, Copy)]
enum Step {
    HostWrites(usize),
    HostReads(usize),
    GuestSends(usize),
    GuestTakes(usize),
    HostShuts,
    GuestShuts,
    GuestCloses,
    Turn,
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    use Step::*;
    let step = prop_oneof![
        6 => (1usize..9000).prop_map(HostWrites),
        6 => (1usize..9000).prop_map(HostReads),
        6 => (1usize..9000).prop_map(GuestSends),
        6 => (1usize..9000).prop_map(GuestTakes),
        10 => Just(Turn),
        1 => Just(HostShuts),
        1 => Just(GuestShuts),
        1 => Just(GuestCloses),
    ];
    (0..CONNECTIONS, step)
}

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![
        Just(Framing::Split),
        Just(Framing::Joined),
        Just(Framing::Pieces(700))
    ]
}

/// Bytes that show loss, doubling and disorder; different for each connection.
fn bytes(seed: usize, from: usize, count: usize) -> Vec<u8> {
    let byte = |at: usize| ((at + seed * 7919).wrapping_mul(2_654_435_761) >> 13) as u8;
    (from..from + count).map(byte).collect()
}

struct Stream {
    key: Key,
    host: UnixStream,
    host_wrote: usize,
    host_read: Vec<u8>,
    host_saw_end: bool,
    host_shut: bool,
    guest_sent: usize,
    guest_took: Vec<u8>,
}

impl Stream {
    fn host_reads(&mut self, count: usize) -> bool {
        let mut buffer = vec![0; count];
        match self.host.read(&mut buffer) {
            Ok(0) => self.host_saw_end = true,
            Ok(count) => self.host_read.extend(&buffer[..count]),
            Err(err) => {
                assert_eq!(err.kind(), io::ErrorKind::WouldBlock, "{err}");
                return false;
            }
        }
        !self.host_saw_end
    }
}

/// One connection the guest asked for, one a client asked for, and so on.
fn open(world: &mut World, guest_asks: bool, number: usize) -> Stream {
    let guest_port = GUEST_PORT + number as u32;
    let (key, host) = if guest_asks {
        let host_port = HOST_PORT + number as u32;
        let listener = world.listen(host_port);
        let key = (guest_port, host_port);
        world.guest.connect(key);
        world.settle();
        (key, listener.accept().unwrap().0)
    } else {
        world.guest.listening.push(guest_port);
        let mut client = world.client();
        client
            .write_all(format!("CONNECT {guest_port}\n").as_bytes())
            .unwrap();
        world.settle();
        let mut line = [0; 20];
        let count = client.read(&mut line).unwrap();
        let line = std::str::from_utf8(&line[..count]).unwrap();
        let port = line
            .strip_prefix("OK ")
            .unwrap()
            .trim_end()
            .parse()
            .unwrap();
        ((guest_port, port), client)
    };
    host.set_nonblocking(true).unwrap();
    assert!(world.guest.sockets[&key].established);
    Stream {
        key,
        host,
        host_wrote: 0,
        host_read: Vec::new(),
        host_saw_end: false,
        host_shut: false,
        guest_sent: 0,
        guest_took: Vec::new(),
    }
}

fn apply(world: &mut World, streams: &mut [Stream], number: usize, step: Step) {
    let stream = &mut streams[number];
    let key = stream.key;
    match step {
        Step::HostWrites(count) if !stream.host_shut => {
            match stream.host.write(&bytes(number, stream.host_wrote, count)) {
                Ok(count) => stream.host_wrote += count,
                Err(err) => {
                    let guest_left = world.guest.sockets[&key].closed;
                    assert!(
                        err.kind() == io::ErrorKind::WouldBlock || guest_left,
                        "{err}"
                    );
                }
            }
        }
        Step::HostWrites(_) => {}
        Step::HostReads(count) => {
            stream.host_reads(count);
        }
        Step::GuestSends(count) => {
            let wanted = bytes(number + 100, stream.guest_sent, count);
            stream.guest_sent += world.guest.send(key, &wanted);
        }
        Step::GuestTakes(count) => stream.guest_took.extend(world.guest.take(key, count)),
        Step::HostShuts => {
            stream.host_shut = true;
            let _ = stream.host.shutdown(Shutdown::Write);
        }
        Step::GuestShuts => world.guest.shut(key, SHUTDOWN_SEND),
        Step::GuestCloses => world.guest.close(key),
        Step::Turn => {
            world.turn();
        }
    }
}

/// Everything comes to rest with both sides reading.
fn drain(world: &mut World, streams: &mut [Stream]) {
    let mut quiet = 0;
    while quiet < 5 {
        let mut moved = world.turn();
        for stream in &mut *streams {
            while stream.host_reads(100_000) {
                moved = true;
            }
            let taken = world.guest.take(stream.key, 100_000);
            moved |= !taken.is_empty();
            stream.guest_took.extend(taken);
        }
        quiet = if moved { 0 } else { quiet + 1 };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_one_side_writes_the_other_reads(
        framing in framing(),
        event_idx in any::<bool>(),
        window in 5000u32..20_000,
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let limits = Limits { window, ..Limits::default() };
        let mut world = World::new(framing, event_idx, limits);
        let mut streams: Vec<Stream> =
            (0..CONNECTIONS).map(|number| open(&mut world, number % 2 == 0, number)).collect();
        for (number, step) in steps {
            apply(&mut world, &mut streams, number, step);
        }
        drain(&mut world, &mut streams);
        for (number, stream) in streams.iter().enumerate() {
            let socket = &world.guest.sockets[&stream.key];
            prop_assert_eq!(&stream.host_read, &bytes(number + 100, 0, stream.guest_sent));
            let guest_ended = socket.closed || socket.shutdown & SHUTDOWN_SEND != 0;
            prop_assert_eq!(stream.host_saw_end, guest_ended);
            let host_bytes = bytes(number, 0, stream.host_wrote);
            if socket.closed {
                prop_assert!(host_bytes.starts_with(&stream.guest_took));
                prop_assert!(socket.dead, "the full close is confirmed");
            } else {
                prop_assert_eq!(&stream.guest_took, &host_bytes);
                prop_assert_eq!(socket.peer_shutdown & SHUTDOWN_SEND != 0, stream.host_shut);
            }
        }
        let counters = world.backend.lock().unwrap().counters().unwrap();
        prop_assert_eq!(counters, Default::default());
    }
}
