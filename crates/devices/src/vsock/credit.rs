//! Credit-based flow control of one connection (virtio 1.2, 5.10.6.3).
//!
//! Counters run modulo 2^32 on the wire, so all arithmetic here wraps.

/// The guest sent more than the space it was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest sent {len} bytes into a window of {window}")]
pub struct Overrun {
    /// Payload of the packet.
    pub len: u32,
    /// What was left of the window.
    pub window: u32,
}

/// Both directions of one connection's credit.
#[derive(Debug, Clone)]
pub struct Credit {
    /// What we told the guest it may have under way to the host.
    buf_alloc: u32,
    /// Bytes that came from the guest.
    received: u32,
    /// Of these, bytes that left for the host: our `fwd_cnt`.
    forwarded: u32,
    /// `forwarded` as the guest last heard it.
    told: u32,
    /// The guest's `buf_alloc`.
    peer_alloc: u32,
    /// The guest's `fwd_cnt`.
    peer_forwarded: u32,
    /// Bytes we sent to the guest.
    sent: u32,
}

impl Credit {
    /// A connection whose guest may have `buf_alloc` bytes under way.
    pub fn new(buf_alloc: u32) -> Credit {
        Credit {
            buf_alloc,
            received: 0,
            forwarded: 0,
            told: 0,
            peer_alloc: 0,
            peer_forwarded: 0,
            sent: 0,
        }
    }

    /// What the guest may have under way to the host at most.
    pub fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// Counts a payload from the guest, which must fit the window.
    pub fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let window = self.buf_alloc - self.received.wrapping_sub(self.forwarded);
        if len > window {
            return Err(Overrun { len, window });
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// Counts payload that left for the host (or was dropped on purpose).
    pub fn forward(&mut self, len: u32) {
        debug_assert!(len <= self.received.wrapping_sub(self.forwarded));
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Takes over what a packet of the guest says about its own buffer.
    pub fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_alloc = buf_alloc;
        self.peer_forwarded = fwd_cnt;
    }

    /// Bytes the guest can take now. A guest that contradicts itself gets none.
    pub fn available(&self) -> u32 {
        self.peer_alloc
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Counts payload sent to the guest.
    pub fn spend(&mut self, len: u32) {
        debug_assert!(len <= self.available());
        self.sent = self.sent.wrapping_add(len);
    }

    /// The pair every packet to the guest carries.
    pub fn announce(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.buf_alloc, self.forwarded)
    }

    /// Whether the guest should hear of new space: it believes more than half
    /// of the window is taken, and that is no longer so.
    pub fn update_due(&self) -> bool {
        self.told != self.forwarded && self.received.wrapping_sub(self.told) > self.buf_alloc / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_window_can_be_filled_to_the_last_byte_and_no_further() {
        let mut credit = Credit::new(100);
        credit.receive(60).unwrap();
        credit.receive(40).unwrap();
        assert_eq!(credit.receive(1), Err(Overrun { len: 1, window: 0 }));
        credit.forward(30);
        assert_eq!(
            credit.receive(31),
            Err(Overrun {
                len: 31,
                window: 30
            })
        );
        credit.receive(30).unwrap();
    }

    #[test]
    fn space_is_announced_once_half_the_window_looks_taken() {
        let mut credit = Credit::new(100);
        credit.receive(50).unwrap();
        credit.forward(50);
        assert!(!credit.update_due());
        credit.receive(1).unwrap();
        assert!(credit.update_due());
        assert_eq!(credit.announce(), (100, 50));
        assert!(!credit.update_due());
    }

    #[test]
    fn a_guest_that_claims_to_have_read_what_was_never_sent_gets_nothing() {
        let mut credit = Credit::new(100);
        credit.learn(1000, 1);
        assert_eq!(credit.available(), 0);
    }

    proptest! {
        /// Counters start anywhere, so that each run wraps somewhere.
        #[test]
        fn wrapping_changes_nothing(start in any::<u32>(), steps in prop::collection::vec((0u32..5000, 0u32..5000, 0u32..5000), 1..200)) {
            let mut credit = Credit::new(4096);
            credit.received = start;
            credit.forwarded = start;
            credit.told = start;
            credit.sent = start;
            credit.learn(4096, start);
            let (mut inside, mut under_way) = (0u64, 0u64);
            for (receive, forward, spend) in steps {
                let fits = inside + u64::from(receive) <= 4096;
                prop_assert_eq!(credit.receive(receive).is_ok(), fits);
                inside += if fits { u64::from(receive) } else { 0 };
                let forward = u64::from(forward).min(inside);
                credit.forward(forward as u32);
                inside -= forward;
                prop_assert_eq!(u64::from(credit.available()), 4096 - under_way);
                let spend = spend.min(credit.available());
                credit.spend(spend);
                under_way += u64::from(spend);
                if under_way > 3000 {
                    credit.learn(4096, credit.sent);
                    under_way = 0;
                }
            }
        }
    }
}
