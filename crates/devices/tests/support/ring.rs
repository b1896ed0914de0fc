//! A split virtqueue as a guest's driver keeps it (virtio 1.2, 2.7).

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub type Memory = GuestMemoryMmap<()>;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// One descriptor to be: where, how long, whether the device may write.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

/// The driver's side of a queue.
pub struct Ring {
    pub memory: Memory,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// Whether VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    next_available: u16,
    next_used: u16,
    free: Vec<u16>,
    /// Descriptors of the chain that begins with this index.
    chains: Vec<Vec<u16>>,
}

impl Ring {
    /// Bytes of memory a ring takes.
    pub const ROOM: u64 = 0x4000;

    pub fn new(memory: &Memory, base: u64, size: u16, event_idx: bool) -> Ring {
        Ring {
            memory: memory.clone(),
            size,
            descriptors: base,
            available: base + 0x2000,
            used: base + 0x3000,
            event_idx,
            next_available: 0,
            next_used: 0,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
        }
    }

    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Offers a chain to the device. Says whether the device wants to be kicked.
    pub fn offer(&mut self, buffers: &[Buffer]) -> (u16, bool) {
        let indices: Vec<u16> = buffers
            .iter()
            .map(|_| self.free.pop().expect("room in the ring"))
            .collect();
        for (i, buffer) in buffers.iter().enumerate() {
            let next = indices.get(i + 1);
            let mut flags = if next.is_some() { NEXT } else { 0 };
            if buffer.writable {
                flags |= WRITE;
            }
            self.write_descriptor(indices[i], *buffer, flags, next.copied().unwrap_or(0));
        }
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        let kick = self.publish(head);
        (head, kick)
    }

    /// Writes any descriptor, sensible or not.
    pub fn write_descriptor(&self, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let at = self.descriptors + 16 * u64::from(index);
        self.write(at, &buffer.address.to_le_bytes());
        self.write(at + 8, &buffer.len.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// Puts a head into the available ring.
    pub fn publish(&mut self, head: u16) -> bool {
        let slot = u64::from(self.next_available % self.size);
        self.write(self.available + 4 + 2 * slot, &head.to_le_bytes());
        let old = self.next_available;
        self.next_available = old.wrapping_add(1);
        self.set_available_index(self.next_available);
        std::sync::atomic::fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.read_u16(self.used) & 1 == 0;
        }
        let event = self.read_u16(self.used + 4 + 8 * u64::from(self.size));
        self.next_available.wrapping_sub(event).wrapping_sub(1)
            < self.next_available.wrapping_sub(old)
    }

    /// Writes any index, true or not.
    pub fn set_available_index(&self, index: u16) {
        self.memory
            .store(
                index.to_le(),
                GuestAddress(self.available + 2),
                Ordering::Release,
            )
            .unwrap();
    }

    /// The next chain the device has given back: its head and the bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self
            .memory
            .load(GuestAddress(self.used + 2), Ordering::Acquire)
            .unwrap();
        if u16::from_le(index) == self.next_used {
            if self.event_idx {
                let event = self.available + 4 + 2 * u64::from(self.size);
                self.write(event, &self.next_used.to_le_bytes());
            }
            return None;
        }
        let slot = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let head = self.read_u32(slot) as u16;
        self.free.append(&mut self.chains[usize::from(head)]);
        Some((head, self.read_u32(slot + 4)))
    }

    /// The same for a driver that has itself overwritten the used ring.
    pub fn take_used_unchecked(&mut self) -> Option<()> {
        let index = self.read_u16(self.used + 2);
        if index.wrapping_sub(self.next_used) == 0 || index.wrapping_sub(self.next_used) > self.size
        {
            return None;
        }
        let slot = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let head = self.read_u32(slot) as usize;
        if let Some(chain) = self.chains.get_mut(head) {
            self.free.append(chain);
        }
        Some(())
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn read_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().unwrap())
    }

    fn read_u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.read(address, 4).try_into().unwrap())
    }
}
