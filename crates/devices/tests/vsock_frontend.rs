//! The real process' socket device, driven through vhost-user as a VMM does.
//! Needs root.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use support::guest::{CID, Framing, Guest};
use support::process::{FrontEnd, Process, shared_memory};
use support::ring::{Memory, Ring};

/// The process, and a guest whose driver runs when it is called.
struct Machine {
    process: Process,
    front_end: FrontEnd,
    guest: Guest,
    memory: Memory,
    event: Ring,
}

impl Machine {
    fn start(framing: Framing, event_idx: bool) -> Machine {
        let process = Process::start();
        let memory = shared_memory();
        let guest = Guest::new(&memory, framing, event_idx);
        let event = Ring::new(&memory, 0x1_8000, 64, event_idx);
        let rings = [&guest.receive, &guest.transmit, &event];
        let front_end = FrontEnd::connect(&process.path("vsock.sock"), &memory, &rings);
        Machine {
            process,
            front_end,
            guest,
            memory,
            event,
        }
    }

    /// Runs the driver, on the device's notifications, until this holds.
    fn run_until(&mut self, what: &str, mut holds: impl FnMut(&mut Guest) -> bool) {
        let start = Instant::now();
        loop {
            let (receive, transmit) = self.guest.pump();
            for (index, kick) in [receive, transmit].into_iter().enumerate() {
                if kick {
                    self.front_end.kicks[index].write(1).unwrap();
                }
            }
            if holds(&mut self.guest) {
                return;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "waited too long: {what}"
            );
            self.wait_for_call();
        }
    }

    fn wait_for_call(&self) {
        let calls = &self.front_end.calls;
        let fd = |event: &vmm_sys_util::eventfd::EventFd| {
            // SAFETY: the event outlives the poll call below.
            unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(event)) }
        };
        let mut fds: Vec<PollFd<'_>> = calls
            .iter()
            .map(|call| PollFd::new(fd(call), PollFlags::POLLIN))
            .collect();
        // Other conditions are looked at as well now and then.
        poll(&mut fds, PollTimeout::from(10u8)).unwrap();
        for call in calls {
            let _ = call.read();
        }
    }

    fn client(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let mut client = UnixStream::connect(self.process.path("vsock/vm.vsock")).unwrap();
        client
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        client.set_nonblocking(true).unwrap();
        let mut line = Vec::new();
        self.run_until("OK", |_| {
            let mut bytes = [0; 32];
            if let Ok(count) = client.read(&mut bytes) {
                assert_ne!(count, 0, "refused");
                line.extend(&bytes[..count]);
            }
            line.ends_with(b"\n")
        });
        let line = String::from_utf8(line).unwrap();
        let host = line
            .strip_prefix("OK ")
            .unwrap()
            .trim_end()
            .parse()
            .unwrap();
        (client, (port, host))
    }
}

#[test]
fn the_guest_reads_its_context_id() {
    let mut machine = Machine::start(Framing::Split, true);
    assert_eq!(machine.front_end.config(8), CID.to_le_bytes());
}

fn echoes(framing: Framing, event_idx: bool) {
    let mut machine = Machine::start(framing, event_idx);
    machine.guest.listening.push(80);
    let (client, key) = machine.client(80);
    let sent: Vec<u8> = (0..300_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
    let mut writer = client.try_clone().unwrap();
    let (mut wrote, mut echoed, mut back) = (0, 0, Vec::<u8>::new());
    let mut inside = Vec::new();
    let mut reader = client;
    machine.run_until("echo", |guest| {
        while let Ok(count) = writer.write(&sent[wrote..])
            && count > 0
        {
            wrote += count;
        }
        if wrote == sent.len() {
            let _ = writer.shutdown(Shutdown::Write);
        }
        inside.extend(guest.take(key, 100_000));
        echoed += guest.send(key, &inside[echoed..]);
        let mut bytes = [0; 65536];
        while let Ok(count) = reader.read(&mut bytes)
            && count > 0
        {
            back.extend(&bytes[..count]);
        }
        back.len() == sent.len()
    });
    assert_eq!(back, sent);
    // The client has shut its half; the guest does, and both are done.
    machine.guest.shut(key, 2);
    machine.run_until("end", |guest| guest.sockets[&key].dead);
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn streams_echo_with_two_descriptors_and_event_idx() {
    echoes(Framing::Split, true);
}

#[test]
fn streams_echo_with_one_descriptor_and_plain_notifications() {
    echoes(Framing::Joined, false);
}

#[test]
fn streams_echo_with_many_descriptors() {
    echoes(Framing::Pieces(300), true);
}

#[test]
fn the_guest_reaches_services_of_the_host_from_inside_the_jail() {
    let mut machine = Machine::start(Framing::Joined, true);
    let listener = UnixListener::bind(machine.process.path("vsock/vm.vsock_90")).unwrap();
    listener.set_nonblocking(true).unwrap();
    machine.guest.connect((1, 90));
    machine.guest.connect((2, 91));
    machine.run_until("answers", |guest| {
        guest.sockets[&(1, 90)].established && guest.sockets[&(2, 91)].refused
    });
    let (mut service, _) = listener.accept().unwrap();
    machine.guest.send((1, 90), b"hello");
    machine.run_until("delivery", |_| {
        let mut bytes = [0; 10];
        matches!(service.read(&mut bytes), Ok(5)) && bytes.starts_with(b"hello")
    });
}

#[test]
fn a_pause_keeps_connections_and_a_restart_does_not() {
    let mut machine = Machine::start(Framing::Split, true);
    machine.guest.listening.push(80);
    let (mut client, key) = machine.client(80);
    let positions = machine.front_end.stop();
    client.write_all(b"while paused").unwrap();
    let rings = [
        &machine.guest.receive,
        &machine.guest.transmit,
        &machine.event,
    ];
    machine.front_end.start(&machine.memory, &rings, &positions);
    machine.run_until("bytes from the pause", |guest| {
        guest.sockets[&key].read.len() == b"while paused".len()
    });

    machine.front_end.stop();
    machine.memory = machine.memory.clone();
    machine.guest = {
        let (receive, transmit) = (&machine.guest.receive, &machine.guest.transmit);
        for ring in [receive, transmit] {
            ring.write(ring.available, &[0; 4]);
            ring.write(ring.used, &[0; 4]);
        }
        Guest::new(&machine.memory, Framing::Split, true)
    };
    let rings = [
        &machine.guest.receive,
        &machine.guest.transmit,
        &machine.event,
    ];
    machine.front_end.start(&machine.memory, &rings, &[0; 3]);
    machine.run_until("the client's end", |_| {
        matches!(client.read(&mut [0; 1]), Ok(0))
    });
}

#[test]
fn it_sleeps_when_nothing_happens() {
    let mut machine = Machine::start(Framing::Split, true);
    machine.guest.listening.push(80);
    let (mut client, _key) = machine.client(80);
    // The guest does not read, the client does not stop: still no work.
    while client.write(&[0; 4096]).is_ok() {
        machine.guest.pump();
    }
    std::thread::sleep(Duration::from_millis(300));
    let before = machine.cpu_ticks();
    std::thread::sleep(Duration::from_millis(1000));
    assert!(machine.cpu_ticks() - before <= 1);
    let _ = client.as_fd();
}

impl Machine {
    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.child.id()));
        let stat = stat.unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}
