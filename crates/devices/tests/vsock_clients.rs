//! Clients on the host: the hybrid socket's manners, limits and deadlines.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use casemate_devices::Limits;
use casemate_devices::vsock::header::{Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use support::guest::{Framing, Key};
use support::harness::World;

const PORT: u32 = 70;

fn world() -> World {
    let mut world = World::new(Framing::Split, true, Limits::default());
    world.guest.listening.push(PORT);
    world
}

fn read(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut bytes = [0; 100_000];
    match stream.read(&mut bytes) {
        Ok(count) => Some(bytes[..count].to_vec()),
        Err(err) => {
            assert_eq!(err.kind(), ErrorKind::WouldBlock);
            None
        }
    }
}

fn connect(world: &mut World) -> (UnixStream, Key) {
    let mut client = world.client();
    client
        .write_all(format!("CONNECT {PORT}\n").as_bytes())
        .unwrap();
    world.settle();
    let line = String::from_utf8(read(&mut client).unwrap()).unwrap();
    let port = line
        .strip_prefix("OK ")
        .unwrap()
        .strip_suffix('\n')
        .unwrap()
        .parse()
        .unwrap();
    (client, (PORT, port))
}

#[test]
fn a_client_gets_a_port_of_its_own() {
    let mut world = world();
    let (_one, first) = connect(&mut world);
    let (_two, second) = connect(&mut world);
    assert_ne!(first, second);
    assert!(first.1 >= 1 << 30);
}

#[test]
fn a_greeting_may_come_in_pieces_and_with_payload_behind_it() {
    let mut world = world();
    let mut client = world.client();
    for byte in format!("CONNECT {PORT}\n").bytes() {
        client.write_all(&[byte]).unwrap();
        world.settle();
    }
    client.write_all(b"payload").unwrap();
    let mut eager = world.client();
    eager
        .write_all(format!("CONNECT {PORT}\nat once").as_bytes())
        .unwrap();
    eager.shutdown(Shutdown::Write).unwrap();
    world.settle();
    let keys: Vec<Key> = world.guest.sockets.keys().copied().collect();
    assert_eq!(world.guest.take(keys[0], 100), b"payload");
    assert_eq!(world.guest.take(keys[1], 100), b"at once");
    assert_eq!(world.guest.sockets[&keys[1]].peer_shutdown, SHUTDOWN_SEND);
    assert!(read(&mut eager).unwrap().starts_with(b"OK "));
}

#[test]
fn a_refused_client_reads_end_of_file() {
    let mut world = world();
    let mut client = world.client();
    client
        .write_all(b"CONNECT 71\nwith payload behind it")
        .unwrap();
    world.settle();
    assert_eq!(read(&mut client).unwrap(), b"");
    for nonsense in ["\n", "CONNECT x\n", "GET / HTTP/1.1\r\n\r\n"] {
        let mut client = world.client();
        client.write_all(nonsense.as_bytes()).unwrap();
        world.settle();
        assert_eq!(read(&mut client).unwrap(), b"", "{nonsense}");
    }
    assert_eq!(world.backend.lock().unwrap().open_streams(), 0);
}

#[test]
fn half_closes_pass_both_ways() {
    let mut world = world();
    let (mut client, key) = connect(&mut world);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    world.settle();
    assert_eq!(world.guest.take(key, 100), b"question");
    assert_eq!(world.guest.sockets[&key].peer_shutdown, SHUTDOWN_SEND);
    // The guest answers long after the client has ended its half.
    assert_eq!(world.guest.send(key, b"answer"), 6);
    world.settle();
    assert_eq!(read(&mut client).unwrap(), b"answer");
    assert_eq!(read(&mut client), None);
    world.guest.shut(key, SHUTDOWN_SEND);
    world.settle();
    assert_eq!(read(&mut client).unwrap(), b"");
    assert_eq!(world.guest.sockets[&key].peer_shutdown, SHUTDOWN_BOTH);
    assert_eq!(world.backend.lock().unwrap().open_streams(), 0);
}

#[test]
fn a_guest_that_reads_no_more_stops_the_writer() {
    let mut world = world();
    let (mut client, key) = connect(&mut world);
    world.guest.shut(key, SHUTDOWN_RECEIVE);
    world.settle();
    assert_eq!(
        client.write(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    assert_eq!(world.guest.send(key, b"still talks"), 11);
    world.settle();
    assert_eq!(read(&mut client).unwrap(), b"still talks");
}

#[test]
fn a_client_that_leaves_ends_both_directions() {
    let mut world = world();
    let (client, key) = connect(&mut world);
    drop(client);
    world.settle();
    let socket = &world.guest.sockets[&key];
    assert_eq!(socket.peer_shutdown, SHUTDOWN_BOTH);
    assert!(socket.dead, "the guest confirms");
    assert_eq!(world.backend.lock().unwrap().open_streams(), 0);
}

#[test]
fn what_a_client_wrote_before_it_left_arrives() {
    let mut world = world();
    let (mut client, key) = connect(&mut world);
    let mut sent = 0;
    while let Ok(count) = client.write(&[9; 1000]) {
        sent += count;
    }
    drop(client);
    let mut taken = 0;
    while taken < sent {
        world.settle();
        taken += world.guest.take(key, 100_000).len();
    }
    world.settle();
    world.guest.close(key);
    world.settle();
    assert_eq!(taken, sent);
    assert!(world.guest.sockets[&key].dead);
}

#[test]
fn a_guest_that_closes_with_bytes_unread_is_end_of_file_for_the_client() {
    let mut world = world();
    let (mut client, key) = connect(&mut world);
    // More than the guest's buffer takes: the rest waits in the socket.
    client.write_all(&[1; 60_000]).unwrap();
    assert_eq!(world.guest.send(key, b"last words"), 10);
    world.settle();
    world.guest.close(key);
    world.settle();
    assert_eq!(read(&mut client).unwrap(), b"last words");
    assert_eq!(read(&mut client).unwrap(), b"");
}

#[test]
fn a_guest_that_does_not_read_stops_the_client() {
    let mut world = world();
    let (mut client, key) = connect(&mut world);
    let mut sent = 0;
    for _ in 0..100 {
        while let Ok(count) = client.write(&[9; 1000]) {
            sent += count;
        }
        world.settle();
    }
    assert_eq!(
        world.guest.sockets[&key].read.len(),
        4096,
        "as much as the guest offered"
    );
    assert!(sent < 1_000_000, "the rest stays in the socket");
    assert!(!world.turn(), "nothing spins");
}

#[test]
fn clients_that_say_nothing_are_limited_and_given_up() {
    let patience = Duration::from_millis(50);
    let limits = Limits {
        pending: 4,
        patience,
        ..Limits::default()
    };
    let mut world = World::new(Framing::Split, true, limits);
    world.guest.listening.push(PORT);
    let mut silent: Vec<UnixStream> = (0..4).map(|_| world.client()).collect();
    world.settle();
    let mut late = world.client();
    late.write_all(format!("CONNECT {PORT}\n").as_bytes())
        .unwrap();
    world.settle();
    assert_eq!(read(&mut late), None, "waits at the socket");
    std::thread::sleep(2 * patience);
    world.settle();
    assert_eq!(read(&mut silent[0]).unwrap(), b"");
    assert!(read(&mut late).unwrap().starts_with(b"OK "));
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let patience = Duration::from_millis(50);
    let mut world = World::new(
        Framing::Split,
        true,
        Limits {
            patience,
            ..Limits::default()
        },
    );
    let mut client = world.client();
    client.write_all(b"CONNECT 99\n").unwrap();
    // Only the device moves: the guest's driver is asleep.
    let event = |world: &World, number| {
        world.event(number, vmm_sys_util::epoll::EventSet::IN);
    };
    event(&world, casemate_devices::vsock::poll::TOKEN_LISTENER);
    std::thread::sleep(2 * patience);
    event(&world, casemate_devices::vsock::poll::TOKEN_TIMER);
    assert_eq!(read(&mut client).unwrap(), b"");
    world.settle();
    let ops: Vec<u16> = world.guest.stray.iter().map(|header| header.op).collect();
    assert_eq!(ops, [Op::Reset as u16]);
    assert_eq!(world.backend.lock().unwrap().open_streams(), 0);
}

#[test]
fn a_client_that_leaves_before_the_answer_takes_its_request_back() {
    let mut world = world();
    let mut client = world.client();
    client
        .write_all(format!("CONNECT {PORT}\n").as_bytes())
        .unwrap();
    world.event(
        casemate_devices::vsock::poll::TOKEN_LISTENER,
        vmm_sys_util::epoll::EventSet::IN,
    );
    drop(client);
    world.settle();
    assert_eq!(world.backend.lock().unwrap().open_streams(), 0);
    assert!(world.guest.sockets.values().all(|socket| socket.dead));
}

/// One connection with much to say does not keep the others waiting.
#[test]
fn connections_take_turns() {
    let mut world = world();
    world.guest.buf_alloc = 1 << 30;
    let (mut greedy, greedy_key) = connect(&mut world);
    let (mut modest, modest_key) = connect(&mut world);
    while greedy.write(&[1; 4096]).is_ok() {}
    world.turn();
    modest.write_all(b"hello").unwrap();
    for _ in 0..4 {
        world.turn();
        while greedy.write(&[1; 4096]).is_ok() {}
    }
    assert_eq!(world.guest.take(modest_key, 10), b"hello");
    assert!(!world.guest.take(greedy_key, 10).is_empty());
}

/// The guest's driver starts anew: its connections are gone, clients learn it.
/// A paused machine that goes on keeps them.
#[test]
fn a_restart_of_the_driver_ends_connections_and_a_pause_does_not() {
    use vhost_user_backend::{VhostUserBackend, VringT};
    let mut world = world();
    let (mut client, key) = connect(&mut world);
    world.backend.acked_features(0);
    world.settle();
    client.write_all(b"x").unwrap();
    world.settle();
    assert_eq!(world.guest.take(key, 1), b"x");

    world.backend.acked_features(0);
    for ring in &world.rings {
        ring.set_queue_next_avail(0);
        ring.set_queue_ready(false);
    }
    world.event(1, vmm_sys_util::epoll::EventSet::IN);
    assert_eq!(
        read(&mut client),
        None,
        "nothing is judged before the rings are set up"
    );
    for ring in &world.rings {
        ring.set_queue_ready(true);
    }
    world.event(1, vmm_sys_util::epoll::EventSet::IN);
    assert_eq!(read(&mut client).unwrap(), b"");
    assert_eq!(world.backend.lock().unwrap().open_streams(), 0);
}
