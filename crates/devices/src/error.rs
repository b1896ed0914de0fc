//! Why the device process ended.

use std::io;

use crate::command_line::UsageError;
use crate::jail;

/// Why the device process ended other than by the VMM's leave.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The monitor's command line makes no sense.
    #[error("device process: {0}")]
    Usage(#[from] UsageError),
    /// A descriptor of the command line is not open.
    #[error("device process: take over a descriptor: {0}")]
    Descriptor(#[source] io::Error),
    /// The monitor is gone.
    #[error("device process: tie to the monitor: {0}")]
    Parent(#[source] io::Error),
    /// A wall of the jail cannot be put up.
    #[error("device process: {0}")]
    Jail(#[from] jail::Error),
    /// The limit on open files is below what the process itself may need.
    #[error(
        "device process: only {limit} open files are allowed, and {reserve} are needed \
         besides the guest's (hint: raise the hard limit, `ulimit -Hn`)"
    )]
    TooFewDescriptors {
        /// The limit.
        limit: u64,
        /// What the process keeps for itself.
        reserve: u64,
    },
    /// The file server cannot be made.
    #[error("device process: share files: {0}")]
    Share(#[source] io::Error),
    /// The socket device cannot be made.
    #[error("device process: serve vsock: {0}")]
    Vsock(#[source] io::Error),
    /// A thread cannot be made.
    #[error("device process: start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The monitor does not wait for us.
    #[error("device process: report that it is ready: {0}")]
    Ready(#[source] io::Error),
    /// The conversation with the VMM failed.
    #[error("device process: vhost-user: {0}")]
    Daemon(vhost_user_backend::Error),
}
