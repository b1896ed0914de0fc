//! The device's virtqueues: batches of packets between the rings and the muxer.

use tracing::{debug, warn};
use vhost_user_backend::VringState;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};

use super::chain::{Cursor, Memory};
use super::muxer::Muxer;

/// A ring as vhost-user-backend keeps it.
pub type Ring = VringState<GuestMemoryAtomic<Memory>>;

/// Chains taken from a ring before other events get their turn. A guest that
/// never stops sending must not keep the host's streams from being served.
const BATCH: usize = 256;

/// What a pass over a ring left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing to do until the next event.
    Nothing,
    /// The batch is full; there may be more.
    More,
}

/// Takes packets of the guest off the transmit ring.
pub fn transmit(muxer: &mut Muxer, ring: &mut Ring, memory: &GuestMemoryAtomic<Memory>) -> Rest {
    if !is_running(ring) || ring.disable_notification().is_err() {
        return Rest::Nothing;
    }
    let memory = memory.memory();
    let mut taken = 0;
    // Where resets pile up it goes on once the guest has made room for them.
    while muxer.accepts_packets() && taken < BATCH {
        let Some(chain) = next_chain(ring, &memory) else {
            break;
        };
        let head = chain.head_index();
        muxer.packet(Cursor::readable(&memory, chain));
        taken += 1;
        give_back(ring, &memory, head, 0);
    }
    notify(ring, taken);
    if taken == BATCH {
        Rest::More
    } else {
        Rest::Nothing
    }
}

/// Puts packets into the guest's receive buffers.
pub fn receive(muxer: &mut Muxer, ring: &mut Ring, memory: &GuestMemoryAtomic<Memory>) -> Rest {
    if !is_running(ring) || !muxer.has_packets() {
        return Rest::Nothing;
    }
    let memory = memory.memory();
    let mut taken = 0;
    while muxer.has_packets() && taken < BATCH {
        let Some(chain) = next_chain(ring, &memory) else {
            break;
        };
        let head = chain.head_index();
        let written = match muxer.fill(Cursor::writable(&memory, chain)) {
            Ok(Some(written)) => written,
            Ok(None) => {
                ring.get_queue_mut().go_to_previous_position();
                break;
            }
            Err(err) => {
                muxer.bad_chain(err);
                0
            }
        };
        taken += 1;
        give_back(ring, &memory, head, written);
    }
    notify(ring, taken);
    if taken == BATCH {
        Rest::More
    } else {
        Rest::Nothing
    }
}

/// The next chain; where there is none, the guest is asked to kick for more.
fn next_chain<'m>(ring: &mut Ring, memory: &'m Memory) -> Option<DescriptorChain<&'m Memory>> {
    let chain = ring.get_queue_mut().pop_descriptor_chain(memory);
    if chain.is_some() || !matches!(ring.enable_notification(), Ok(true)) {
        return chain;
    }
    // It came in between. Once is enough: who lies about the index must kick.
    ring.get_queue_mut().pop_descriptor_chain(memory)
}

/// Whether the front end has set the ring up and enabled it.
pub fn is_running(ring: &Ring) -> bool {
    ring.is_enabled() && ring.get_queue().ready()
}

/// A used ring that cannot be written is the guest's loss.
fn give_back(ring: &mut Ring, memory: &Memory, head: u16, written: u32) {
    if let Err(err) = ring.get_queue_mut().add_used(memory, head, written) {
        debug!(%err, "cannot return a descriptor chain");
    }
}

/// One notification for a whole batch, and only if the driver wants it.
fn notify(ring: &mut Ring, taken: usize) {
    if taken > 0
        && ring.needs_notification().unwrap_or(true)
        && let Err(err) = ring.signal_used_queue()
    {
        warn!(%err, "cannot notify the guest");
    }
}
