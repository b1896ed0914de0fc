//! Bounds on what the guest and the clients on the host may use.

use std::time::Duration;

use super::poll::TOKEN_STREAMS;

/// What the guest and the clients on the host may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time, clients that have not said their port included.
    pub connections: u16,
    /// Of these, clients whose connection is not open yet.
    pub pending: u16,
    /// Bytes of one connection that may wait for the host.
    pub window: u32,
    /// Bytes of all connections together that may wait for the host.
    pub memory: u64,
    /// How long a client may take to say its port, the guest to answer a
    /// request, and the guest to confirm the end of a connection.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            pending: 64,
            window: 256 * 1024,
            memory: 64 * 1024 * 1024,
            patience: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Slots are epoll tokens of 16 bits, and some tokens have other uses.
    pub const CONNECTIONS_MAX: u16 = u16::MAX - TOKEN_STREAMS;

    /// The window that is left for every connection when all are in use.
    fn smallest_window(&self) -> u32 {
        let share = self.memory / u64::from(self.connections.max(1));
        self.window.min(u32::try_from(share).unwrap_or(u32::MAX))
    }

    /// The window for one more connection, such that the smallest one remains
    /// for each that may still come.
    pub(super) fn window_beside(&self, others: usize, committed: u64) -> u32 {
        let to_come = usize::from(self.connections).saturating_sub(others + 1);
        let reserve = to_come as u64 * u64::from(self.smallest_window());
        if committed + u64::from(self.window) + reserve <= self.memory {
            self.window
        } else {
            self.smallest_window()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_never_add_up_to_more_than_the_memory() {
        let limits = Limits::default();
        let mut committed = 0;
        for others in 0..usize::from(limits.connections) {
            let window = limits.window_beside(others, committed);
            assert!(window >= limits.smallest_window() && window <= limits.window);
            committed += u64::from(window);
        }
        assert!(committed <= limits.memory);
    }

    #[test]
    fn few_connections_get_the_full_window() {
        let limits = Limits {
            memory: 256 << 20,
            ..Limits::default()
        };
        assert_eq!(limits.window_beside(0, 0), limits.window);
    }
}
