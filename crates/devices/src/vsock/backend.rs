//! The vhost-user back end of the socket device.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tracing::debug;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringMutex, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::chain::Memory;
use super::device::{self, Rest};
use super::limits::Limits;
use super::muxer::{Counters, Muxer};
use super::poll::{Poll, TOKEN_AGAIN, TOKEN_LISTENER, TOKEN_STREAMS, TOKEN_TIMER};

/// Queues in the order of virtio 1.2, 5.10.2.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// The event queue tells a guest that it was migrated. That never happens here,
/// so its buffers stay with us unused. (QEMU serves it itself.)
const EVENT: usize = 2;
const QUEUES: usize = 3;

/// QEMU offers 128 descriptors a queue.
const QUEUE_SIZE: usize = 1024;

type Vring = VringMutex<GuestMemoryAtomic<Memory>>;

/// What [`Backend`] is made of.
pub struct Parts {
    /// The guest's context id.
    pub guest_cid: u64,
    /// Bounds on what the guest may use.
    pub limits: Limits,
    /// Where `vm.vsock_<port>` is looked for.
    pub directory: PathBuf,
    /// The hybrid socket.
    pub listener: UnixListener,
}

/// The socket device.
pub struct Backend {
    guest_cid: u64,
    muxer: Option<Muxer>,
    memory: Option<GuestMemoryAtomic<Memory>>,
    parts: Option<Parts>,
    /// The front end has negotiated anew since the rings were last served.
    renegotiated: bool,
    /// How far receive and transmit ring had been taken.
    positions: [u16; 2],
}

impl Backend {
    /// A device that has no event loop yet, see [`Backend::start`].
    pub fn new(parts: Parts) -> Arc<Mutex<Backend>> {
        Arc::new(Mutex::new(Backend {
            guest_cid: parts.guest_cid,
            muxer: None,
            memory: None,
            parts: Some(parts),
            renegotiated: false,
            positions: [0; 2],
        }))
    }

    /// Begins to serve the host's sockets in the loop of this epoll instance,
    /// which exists only once vhost-user-backend has been given the device.
    pub fn start(&mut self, epoll: OwnedFd) -> io::Result<()> {
        if let Some(parts) = self.parts.take() {
            let poll = Poll::new(epoll)?;
            let muxer = Muxer::new(
                parts.guest_cid,
                parts.limits,
                parts.directory,
                parts.listener,
                poll,
            )?;
            self.muxer = Some(muxer);
        }
        Ok(())
    }

    /// What went wrong so far; none before the start.
    pub fn counters(&self) -> Option<Counters> {
        self.muxer.as_ref().map(Muxer::counters)
    }

    /// Bytes from the guest that wait for the host.
    pub fn backlog(&self) -> usize {
        self.muxer.as_ref().map_or(0, Muxer::backlog)
    }

    /// Host streams at present: connections, and clients that wait for one.
    pub fn open_streams(&self) -> usize {
        self.muxer.as_ref().map_or(0, Muxer::open_streams)
    }

    fn serve(&mut self, event: u16, events: EventSet, rings: &[Vring]) {
        let (Some(muxer), Some(memory)) = (&mut self.muxer, &self.memory) else {
            return;
        };
        let (mut receive, mut transmit) = (rings[RECEIVE].get_mut(), rings[TRANSMIT].get_mut());
        let mut begins = false;
        if self.renegotiated && device::is_running(&receive) && device::is_running(&transmit) {
            self.renegotiated = false;
            begins = true;
            let begin = [
                receive.get_queue().next_avail(),
                transmit.get_queue().next_avail(),
            ];
            if begin != self.positions {
                debug!(
                    streams = muxer.open_streams(),
                    "guest's vsock driver started anew"
                );
                muxer.restart();
            }
        }
        match event {
            TOKEN_LISTENER => muxer.clients_came(),
            TOKEN_TIMER => muxer.expire(Instant::now()),
            TOKEN_STREAMS.. => muxer.stream_event(event - TOKEN_STREAMS, events),
            _ => {}
        }
        if self.renegotiated {
            // Half set up: the rings are not looked at before it is known
            // which connections the guest's driver still has.
            return;
        }
        let mut more = false;
        if begins || matches!(usize::from(event), TRANSMIT) || event == TOKEN_AGAIN {
            more |= device::transmit(muxer, &mut transmit, memory) == Rest::More;
        }
        muxer.admit_clients();
        let blocked = !muxer.accepts_packets();
        more |= device::receive(muxer, &mut receive, memory) == Rest::More;
        if blocked && muxer.accepts_packets() {
            more |= device::transmit(muxer, &mut transmit, memory) == Rest::More;
        }
        if more {
            muxer.put_off();
        }
        self.positions = [
            receive.get_queue().next_avail(),
            transmit.get_queue().next_avail(),
        ];
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn acked_features(&mut self, _features: u64) {
        // QEMU comes here when the guest's driver starts, but also when a
        // paused VM goes on. The ring positions tell one from the other.
        self.renegotiated = true;
    }

    fn reset_device(&mut self) {
        if let Some(muxer) = &mut self.muxer {
            muxer.restart();
        }
    }

    fn set_event_idx(&mut self, _enabled: bool) {
        // Each ring knows it.
    }

    /// `struct virtio_vsock_config`: the guest's context id (virtio 1.2, 5.10.4).
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.guest_cid.to_le_bytes();
        let mut part: Vec<u8> = config
            .into_iter()
            .skip(offset as usize)
            .take(size as usize)
            .collect();
        part.resize(size as usize, 0);
        part
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    /// Never fails: an error would end the event loop in silence.
    fn handle_event(
        &mut self,
        event: u16,
        events: EventSet,
        rings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        if usize::from(event) != EVENT {
            self.serve(event, events, rings);
        }
        Ok(())
    }
}
