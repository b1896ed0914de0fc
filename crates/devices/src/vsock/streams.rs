//! The table of host streams, and which port pair belongs to which.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::connection::Connection;

/// A connection's address: the guest's context id is fixed, the host's too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The host's port.
    pub host: u32,
    /// The guest's port.
    pub guest: u32,
}

/// What a host stream is for.
pub enum Use {
    /// The client has not said yet which port it wants.
    Greeting,
    /// It carries this connection.
    Connection(Box<Connection>, Ports),
}

/// One stream of the host.
pub struct Stream {
    /// The socket, not blocking.
    pub socket: UnixStream,
    /// What it is for.
    pub purpose: Use,
    /// When to give up waiting, if anything is waited for.
    pub deadline: Option<Instant>,
    /// Whether it stands in the queue of those with something for the guest.
    pub queued: bool,
    /// Whether epoll tells when there is room to write.
    pub room_watched: bool,
}

/// All host streams. Slot numbers stay small, since they are epoll tokens too.
#[derive(Default)]
pub struct Streams {
    slots: Vec<Option<Stream>>,
    free: Vec<u16>,
    by_ports: HashMap<Ports, u16>,
}

impl Streams {
    /// Streams in the table.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a stream and says its slot.
    pub fn insert(&mut self, stream: Stream) -> u16 {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                u16::try_from(self.slots.len() - 1).expect("the limit on connections is a u16")
            }
        };
        self.slots[usize::from(slot)] = Some(stream);
        slot
    }

    /// The stream in a slot; none if it was closed since the event was queued.
    pub fn get(&mut self, slot: u16) -> Option<&mut Stream> {
        self.slots.get_mut(usize::from(slot))?.as_mut()
    }

    /// Takes a stream out.
    pub fn remove(&mut self, slot: u16) -> Option<Stream> {
        let stream = self.slots.get_mut(usize::from(slot))?.take()?;
        self.free.push(slot);
        if let Use::Connection(_, ports) = &stream.purpose {
            self.release(*ports, slot);
        }
        Some(stream)
    }

    /// The slot that serves a port pair.
    pub fn find(&self, ports: Ports) -> Option<u16> {
        self.by_ports.get(&ports).copied()
    }

    /// Binds a port pair to a slot.
    pub fn bind(&mut self, ports: Ports, slot: u16) {
        self.by_ports.insert(ports, slot);
    }

    /// Frees a port pair, unless another slot has taken it over.
    pub fn release(&mut self, ports: Ports, slot: u16) {
        if self.by_ports.get(&ports) == Some(&slot) {
            self.by_ports.remove(&ports);
        }
    }

    /// The slots in use.
    pub fn slots(&self) -> Vec<u16> {
        (0..self.slots.len() as u16)
            .filter(|slot| self.slots[usize::from(*slot)].is_some())
            .collect()
    }

    /// Every connection.
    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.slots
            .iter()
            .flatten()
            .filter_map(|stream| match &stream.purpose {
                Use::Connection(connection, _) => Some(&**connection),
                Use::Greeting => None,
            })
    }

    /// Clients whose connection is not open yet.
    pub fn pending(&self) -> usize {
        let pending = |stream: &&Stream| match &stream.purpose {
            Use::Connection(connection, _) => connection.unanswered(),
            Use::Greeting => true,
        };
        self.slots.iter().flatten().filter(pending).count()
    }

    /// The nearest deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.slots
            .iter()
            .flatten()
            .filter_map(|stream| stream.deadline)
            .min()
    }
}
