//! Bytes from the guest that the host side could not take yet.
//!
//! Empty in the usual case, and then it holds no memory at all. Its size is
//! bounded by the window the guest was given, so a stalled reader on the host
//! costs at most that.

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// A byte queue that gives its memory back when it runs empty.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: Vec<u8>,
    start: usize,
}

impl Backlog {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The waiting bytes, oldest first.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Adds a piece of guest memory.
    pub fn append<B: BitmapSlice>(&mut self, piece: &VolatileSlice<'_, B>) {
        self.make_room(piece.len());
        let end = self.bytes.len();
        self.bytes.resize(end + piece.len(), 0);
        piece.copy_to(&mut self.bytes[end..]);
    }

    /// Removes the oldest `count` bytes.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        assert!(
            self.start <= self.bytes.len(),
            "consumed more than was queued"
        );
        if self.start == self.bytes.len() {
            *self = Backlog::default();
        }
    }

    /// Forgets everything; says how much that was.
    pub fn clear(&mut self) -> usize {
        let dropped = self.len();
        *self = Backlog::default();
        dropped
    }

    /// Moves the content down before the allocation grows.
    fn make_room(&mut self, more: usize) {
        if self.start > 0 && self.bytes.len() + more > self.bytes.capacity() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        // Exactly, since doubling would break the bound.
        self.bytes.reserve_exact(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn append(backlog: &mut Backlog, bytes: &[u8]) {
        let mut copy = bytes.to_vec();
        backlog.append(&VolatileSlice::from(copy.as_mut_slice()));
    }

    #[test]
    fn an_empty_backlog_holds_no_memory() {
        let mut backlog = Backlog::default();
        append(&mut backlog, &[1; 1000]);
        backlog.consume(1000);
        assert_eq!(backlog.bytes.capacity(), 0);
        append(&mut backlog, &[1; 1000]);
        assert_eq!(backlog.clear(), 1000);
        assert_eq!(backlog.bytes.capacity(), 0);
    }

    proptest! {
        #[test]
        fn behaves_as_a_queue_and_stays_small(steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), 0usize..300), 0..100)) {
            let mut backlog = Backlog::default();
            let mut model = std::collections::VecDeque::new();
            let mut most = 0;
            for (bytes, take) in steps {
                append(&mut backlog, &bytes);
                model.extend(bytes);
                most = most.max(model.len());
                let take = take.min(model.len());
                backlog.consume(take);
                model.drain(..take);
                prop_assert_eq!(backlog.pending(), model.make_contiguous() as &[u8]);
                prop_assert!(backlog.bytes.capacity() <= most);
            }
        }
    }
}
