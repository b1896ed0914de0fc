//! The socket device in this very process: its event loop, turned by hand.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use casemate_devices::Limits;
use casemate_devices::vsock::backend::{Backend, Parts};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use vm_memory::{GuestAddress, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;

use super::guest::{CID, Framing, Guest, MEMORY};
use super::ring::{Memory, Ring};

type Vring = VringMutex<GuestMemoryAtomic<Memory>>;

/// A device, its guest, and the host's directory of sockets.
pub struct World {
    pub backend: Arc<Mutex<Backend>>,
    pub guest: Guest,
    pub rings: Vec<Vring>,
    epoll: Epoll,
    directory: tempfile::TempDir,
}

pub fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

/// Sets a ring up as the front end would.
pub fn vring(memory: &GuestMemoryAtomic<Memory>, ring: &Ring) -> Vring {
    let vring = Vring::new(memory.clone(), 1024).unwrap();
    vring.set_queue_size(ring.size);
    vring
        .set_queue_info(ring.descriptors, ring.available, ring.used)
        .unwrap();
    vring.set_queue_event_idx(ring.event_idx);
    vring.set_queue_ready(true);
    vring.set_enabled(true);
    vring
}

impl World {
    pub fn new(framing: Framing, event_idx: bool, limits: Limits) -> World {
        let memory = memory();
        let guest = Guest::new(&memory, framing, event_idx);
        World::with_guest(memory, guest, limits)
    }

    pub fn with_guest(memory: Memory, guest: Guest, limits: Limits) -> World {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vm.vsock")).unwrap();
        let parts = Parts {
            guest_cid: CID,
            limits,
            directory: directory.path().to_owned(),
            listener,
        };
        let backend = Backend::new(parts);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let device_epoll = epoll.0.try_clone().unwrap();
        backend.lock().unwrap().start(device_epoll).unwrap();
        let atomic = GuestMemoryAtomic::new(memory);
        backend.update_memory(atomic.clone()).unwrap();
        let unused = Vring::new(atomic.clone(), 1024).unwrap();
        let rings = vec![
            vring(&atomic, &guest.receive),
            vring(&atomic, &guest.transmit),
            unused,
        ];
        World {
            backend,
            guest,
            rings,
            epoll,
            directory,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A service of the host at a vsock port.
    pub fn listen(&self, port: u32) -> UnixListener {
        let listener = UnixListener::bind(self.path(&format!("vm.vsock_{port}"))).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// A client of the host at the hybrid socket.
    pub fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path("vm.vsock")).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    pub fn event(&self, event: u16, events: EventSet) {
        self.backend
            .handle_event(event, events, &self.rings, 0)
            .unwrap();
    }

    /// One turn: what waits in the guest's driver and at the host's sockets.
    /// Says whether anything happened.
    pub fn turn(&mut self) -> bool {
        let (receive, transmit) = self.guest.pump();
        if receive {
            self.event(0, EventSet::IN);
        }
        if transmit {
            self.event(1, EventSet::IN);
        }
        self.host_events() || receive || transmit
    }

    /// What waits at the host's sockets. Says whether there was anything.
    pub fn host_events(&self) -> bool {
        let mut events = [EpollEvent::empty(); 16];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap();
        for event in &events[..count] {
            let set = EventSet::from_bits(event.events().bits() as u32).unwrap();
            self.event(event.data() as u16, set);
        }
        count > 0
    }

    /// Turns until nothing moves.
    pub fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            quiet = if self.turn() { 0 } else { quiet + 1 };
        }
    }
}
