//! Walking a descriptor chain of the guest, piece by piece.
//!
//! A driver may cut a packet into descriptors as it likes (virtio 1.2, 2.7.4.2):
//! Linux 6.1 uses one for the header and one for the payload, 6.2 a single one,
//! and since 6.7 a payload may be many pages. So nothing is assumed of the
//! framing, and pieces are handed out one at a time, without allocation.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, VolatileSlice};

use super::header::{HEADER_LEN, Header};

/// The guest's memory.
pub type Memory = GuestMemoryMmap<()>;

/// A chain that breaks the rules of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// It ends before the header does.
    #[error("descriptor chain is shorter than a packet header")]
    Short,
    /// It points outside the guest's memory.
    #[error("descriptor points outside guest memory")]
    Address,
    /// It has a descriptor of the wrong direction.
    #[error("descriptor has the wrong direction")]
    Direction,
}

/// A position in a descriptor chain.
#[derive(Clone)]
pub struct Cursor<'m> {
    memory: &'m Memory,
    chain: DescriptorChain<&'m Memory>,
    writable: bool,
    address: GuestAddress,
    rest: usize,
}

impl<'m> Cursor<'m> {
    /// A chain of the transmit queue: every descriptor is device-readable.
    pub fn readable(memory: &'m Memory, chain: DescriptorChain<&'m Memory>) -> Cursor<'m> {
        Cursor::new(memory, chain, false)
    }

    /// A chain of the receive queue: every descriptor is device-writable.
    pub fn writable(memory: &'m Memory, chain: DescriptorChain<&'m Memory>) -> Cursor<'m> {
        Cursor::new(memory, chain, true)
    }

    fn new(memory: &'m Memory, chain: DescriptorChain<&'m Memory>, writable: bool) -> Cursor<'m> {
        Cursor {
            memory,
            chain,
            writable,
            address: GuestAddress(0),
            rest: 0,
        }
    }

    /// The next piece of at most `most` bytes; none at the end of the chain.
    pub fn piece(&mut self, most: usize) -> Result<Option<VolatileSlice<'m>>, BadChain> {
        while self.rest == 0 {
            let Some(descriptor) = self.chain.next() else {
                return Ok(None);
            };
            if descriptor.is_write_only() != self.writable {
                return Err(BadChain::Direction);
            }
            self.address = descriptor.addr();
            self.rest = descriptor.len() as usize;
        }
        let wanted = self.rest.min(most);
        // A descriptor may reach over adjacent memory regions: one slice each.
        let piece = self.memory.get_slices(self.address, wanted).next();
        let piece = piece
            .ok_or(BadChain::Address)?
            .map_err(|_| BadChain::Address)?;
        self.rest -= piece.len();
        self.address = GuestAddress(self.address.0.wrapping_add(piece.len() as u64));
        Ok(Some(piece))
    }

    /// Reads the header a transmit chain begins with.
    pub fn read_header(&mut self) -> Result<Header, BadChain> {
        let mut bytes = [0; HEADER_LEN];
        let mut at = 0;
        while at < HEADER_LEN {
            let piece = self.piece(HEADER_LEN - at)?.ok_or(BadChain::Short)?;
            piece.copy_to(&mut bytes[at..]);
            at += piece.len();
        }
        Ok(Header::from_bytes(&bytes))
    }

    /// Steps over the room for the header of a receive chain.
    pub fn skip_header(&mut self) -> Result<(), BadChain> {
        let mut rest = HEADER_LEN;
        while rest > 0 {
            rest -= self.piece(rest)?.ok_or(BadChain::Short)?.len();
        }
        Ok(())
    }

    /// Writes the header a receive chain begins with.
    pub fn write_header(&mut self, header: &Header) -> Result<(), BadChain> {
        let bytes = header.to_bytes();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let piece = self.piece(rest.len())?.ok_or(BadChain::Short)?;
            piece.copy_from(&rest[..piece.len()]);
            rest = &rest[piece.len()..];
        }
        Ok(())
    }
}
