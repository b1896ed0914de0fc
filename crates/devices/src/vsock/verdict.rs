//! What a connection says to a packet of the guest.

use super::credit::Overrun;

/// What the muxer does with a packet's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is none, or it is to be ignored.
    Done,
    /// The guest accepted the connection: the host client gets its `OK`.
    Answered,
    /// Hand it to the host.
    Deliver,
}

/// A packet of the guest that no well-behaved driver sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// More data than it has credit for.
    #[error(transparent)]
    Overrun(#[from] Overrun),
    /// Data after it said that there would be none.
    #[error("guest sent data after shutting its sending side")]
    DataAfterShutdown,
    /// An operation that has no meaning in this state.
    #[error("guest sent operation {op} to a connection that is {state}")]
    Unexpected {
        /// The operation's number.
        op: u16,
        /// The connection's state.
        state: &'static str,
    },
    /// A payload shorter than its header says.
    #[error("guest sent a packet shorter than its header says")]
    Truncated,
}
