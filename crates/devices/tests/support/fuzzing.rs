//! The socket device at the mercy of arbitrary bytes: they are read as a
//! program for a hostile guest and careless clients. Runs under the fuzzer
//! (`fuzz/`) and, with random bytes, as a test.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use casemate_devices::Limits;
use casemate_devices::vsock::header::{HEADER_LEN, Header};
use vhost_user_backend::{VhostUserBackend, VringT};
use vmm_sys_util::epoll::EventSet;

use super::guest::{CID, Framing, Guest};
use super::harness::{World, memory};
use super::ring::{Buffer, Ring};

const SCRATCH: u64 = 0x30_0000;
const LIMITS: Limits = Limits {
    connections: 8,
    pending: 4,
    window: 4096,
    memory: 16_384,
    patience: std::time::Duration::from_millis(1),
};

/// Bytes as an endless source of small decisions.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// Mostly small, at times anything.
    fn number(&mut self) -> u32 {
        match self.byte() {
            255 => self.word(),
            small => u32::from(small) * 32,
        }
    }

    /// Mostly this, at times anything.
    fn mostly(&mut self, usual: u32) -> u32 {
        match self.byte() {
            0..=15 => self.word(),
            _ => usual,
        }
    }
}

/// Runs the program in `bytes`. Panics if the device breaks a promise.
pub fn vsock(bytes: &[u8]) {
    let mut script = Script(bytes);
    let memory = memory();
    let guest = Guest::new(&memory, Framing::Split, script.byte() & 1 == 1);
    let mut world = World::with_guest(memory, guest, LIMITS);
    let listener = world.listen(50);
    let mut streams: Vec<UnixStream> = Vec::new();
    while !script.0.is_empty() {
        step(&mut script, &mut world, &mut streams);
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            streams.push(stream);
        }
        let backend = world.backend.lock().unwrap();
        assert!(backend.backlog() as u64 <= LIMITS.memory);
        // Besides those, streams whose last bytes the host has not read yet.
        assert!(backend.open_streams() <= usize::from(LIMITS.connections));
    }
}

fn step(script: &mut Script<'_>, world: &mut World, streams: &mut Vec<UnixStream>) {
    match script.byte() % 16 {
        0..=5 => packet(script, world),
        6 => descriptor(script, world),
        7 => lie(script, world),
        8 => recycle(&mut world.guest.receive, true),
        9 => client(script, world, streams),
        10 => host_writes(script, streams),
        11 => host_reads(script, streams),
        12 => {
            let index = usize::from(script.byte());
            if index < streams.len() {
                streams.swap_remove(index);
            }
        }
        13 => {
            world.backend.acked_features(0);
            let ring = &world.rings[usize::from(script.byte() % 2)];
            ring.set_queue_next_avail(script.word() as u16);
        }
        _ => turn(world),
    }
}

/// Everything that waits is handled: kicks, and the host's events.
fn turn(world: &mut World) {
    recycle(&mut world.guest.transmit, false);
    world.event(0, EventSet::IN);
    world.event(1, EventSet::IN);
    world.host_events();
}

/// Takes chains back; receive buffers are offered again.
fn recycle(ring: &mut Ring, offer: bool) {
    while ring.take_used_unchecked().is_some() {
        if offer && ring.room() > 0 {
            ring.offer(&[Buffer {
                address: SCRATCH + 0x8000,
                len: 1500,
                writable: true,
            }]);
        }
    }
}

fn packet(script: &mut Script<'_>, world: &mut World) {
    let payload = script.number() % 6000;
    let header = Header {
        src_cid: u64::from(script.mostly(CID as u32)),
        dst_cid: u64::from(script.mostly(2)),
        src_port: u32::from(script.byte() % 8),
        // The service, or a port that a client was given.
        dst_port: match script.byte() % 8 {
            0 => script.word(),
            1..=4 => 50,
            given => (1 << 30) + u32::from(given) - 5,
        },
        len: script.mostly(payload),
        kind: script.mostly(1) as u16,
        op: u16::from(script.byte() % 9),
        flags: script.number(),
        buf_alloc: script.number(),
        fwd_cnt: script.number(),
    };
    recycle(&mut world.guest.transmit, false);
    let ring = &mut world.guest.transmit;
    if ring.room() < 2 {
        return;
    }
    ring.write(SCRATCH, &header.to_bytes());
    let buffer = |address, len| Buffer {
        address,
        len,
        writable: false,
    };
    let header_len = HEADER_LEN as u32;
    if payload == 0 {
        ring.offer(&[buffer(SCRATCH, header_len)]);
    } else {
        let data = SCRATCH + u64::from(header_len);
        ring.offer(&[buffer(SCRATCH, header_len), buffer(data, payload)]);
    }
    world.event(1, EventSet::IN);
}

/// Writes any descriptor and may offer any head.
fn descriptor(script: &mut Script<'_>, world: &mut World) {
    let ring = match script.byte() % 2 {
        0 => &mut world.guest.receive,
        _ => &mut world.guest.transmit,
    };
    let index = u16::from(script.byte()) % ring.size;
    let address = match script.byte() {
        0..=63 => u64::from(script.word()) << 32 | u64::from(script.word()),
        _ => SCRATCH + u64::from(script.number()),
    };
    let len = script.mostly(HEADER_LEN as u32);
    let flags = u16::from(script.byte() % 8);
    let next = u16::from(script.byte());
    ring.write_descriptor(
        index,
        Buffer {
            address,
            len,
            writable: false,
        },
        flags,
        next,
    );
    if script.byte().is_multiple_of(2) {
        ring.publish(u16::from(script.byte()));
    }
}

/// Writes an index, a flag or anything else into the rings themselves.
fn lie(script: &mut Script<'_>, world: &mut World) {
    let ring = match script.byte() % 2 {
        0 => &world.guest.receive,
        _ => &world.guest.transmit,
    };
    match script.byte() % 3 {
        0 => ring.set_available_index(script.word() as u16),
        1 => ring.write(ring.available + u64::from(script.byte()), &[script.byte()]),
        _ => ring.write(ring.used + u64::from(script.byte()), &[script.byte()]),
    }
}

fn client(script: &mut Script<'_>, world: &World, streams: &mut Vec<UnixStream>) {
    if streams.len() >= 16 {
        return;
    }
    let mut client = world.client();
    let _ = match script.byte() % 4 {
        0 => client.write(&script.word().to_le_bytes()),
        1 => client.write(b"CONNECT "),
        _ => client.write(format!("CONNECT {}\n", script.byte() % 8).as_bytes()),
    };
    streams.push(client);
}

fn host_writes(script: &mut Script<'_>, streams: &mut [UnixStream]) {
    let (index, len) = (usize::from(script.byte()), script.number() % 10_000);
    if let Some(stream) = streams.get_mut(index) {
        let _ = stream.write(&vec![b'1'; len as usize]);
        if len % 7 == 0 {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
    }
}

fn host_reads(script: &mut Script<'_>, streams: &mut [UnixStream]) {
    let (index, len) = (usize::from(script.byte()), script.number() % 10_000);
    if let Some(stream) = streams.get_mut(index) {
        let _ = stream.read(&mut vec![0; len as usize]);
    }
}
