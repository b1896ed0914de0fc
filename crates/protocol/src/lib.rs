//! What the processes of a sandbox say to each other: monitor (host) and agent
//! (guest), and in [`monitor`] the little that the command line asks beyond
//! containerd's Task service.
//!
//! * **Control**: one ttrpc connection per VM. The agent opens it to
//!   [`HOST_CONTROL_PORT`] as soon as it runs (so nobody polls), and serves
//!   [`agent_ttrpc::Agent`] on it; the monitor is the client. When it breaks,
//!   the agent powers the VM off: a VM without its monitor has no purpose.
//! * **Streams**: every standard stream of a process is a vsock connection of
//!   its own, opened by the monitor to [`GUEST_STREAM_PORT`]. It starts with a
//!   [`stream`] preface that says which stream is meant; afterwards there are
//!   only bytes, with vsock's own flow control. The end of a stream is a
//!   half-close. A port of the guest's loopback interface is reached the same way.
//! * **Names**: what a container asks a name server on the host's loopback
//!   interface ([`names`]) is a vsock connection that the agent opens to
//!   [`HOST_NAMES_PORT`].
//!
//! Neither side trusts the other's messages: sizes are limited here, contents
//! are checked where they are used.

// Not `forbid`: the generated service opens with an allow of its own.
#![deny(unsafe_code)]

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    rust_2018_idioms,
    reason = "generated code"
)]
mod generated {
    pub mod agent {
        include!(concat!(env!("OUT_DIR"), "/agent/mod.rs"));
    }
    pub mod monitor {
        include!(concat!(env!("OUT_DIR"), "/monitor/mod.rs"));
    }
}

pub mod names;
pub mod paths;
pub mod stream;

pub use generated::agent::{agent, agent_ttrpc};
pub use generated::monitor::{monitor, monitor_ttrpc};

/// Range of protocol versions that this build speaks, oldest first.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 1..=1;

/// vsock port on the host (CID 2) where the monitor awaits the agent.
pub const HOST_CONTROL_PORT: u32 = 1024;

/// vsock port on the host where the monitor awaits questions for name servers;
/// see [`names`].
pub const HOST_NAMES_PORT: u32 = 1026;

/// vsock port in the guest where the agent awaits stream connections.
pub const GUEST_STREAM_PORT: u32 = 1025;

/// Name (tag) of the virtio-fs share that holds root file systems and volumes.
pub const SHARE_TAG: &str = "casemate";

/// Longest id of a sandbox, container or exec, in bytes.
pub const MAX_ID: usize = 256;

/// Largest message on the control connection, in bytes (ttrpc's own limit is
/// the same 4 MiB, plus its header).
pub const MAX_MESSAGE: usize = 4 << 20;

/// Chooses the version to speak from what the two sides offer: the newest one
/// both know.
///
/// # Errors
/// [`VersionMismatch`] when the ranges do not meet.
pub fn negotiate(min: u32, max: u32) -> Result<u32, VersionMismatch> {
    let newest = max.min(*VERSIONS.end());
    if newest < min.max(*VERSIONS.start()) {
        return Err(VersionMismatch { min, max });
    }
    Ok(newest)
}

/// Host and guest have no protocol version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "protocol version mismatch: the other side speaks {min} to {max}, this side {} to {}; \
     host binary and guest initrd must come from the same build",
    VERSIONS.start(),
    VERSIONS.end()
)]
pub struct VersionMismatch {
    /// Oldest version of the other side.
    pub min: u32,
    /// Newest version of the other side.
    pub max: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(negotiate(1, 1), Ok(1));
        assert_eq!(negotiate(0, 7), Ok(1));
        assert_eq!(negotiate(2, 7), Err(VersionMismatch { min: 2, max: 7 }));
        assert_eq!(negotiate(0, 0), Err(VersionMismatch { min: 0, max: 0 }));
    }
}
