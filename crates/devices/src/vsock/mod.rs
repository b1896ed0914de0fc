//! The socket device: vhost-user-vsock with Firecracker's hybrid unix socket.
//!
//! ```text
//!  guest rings ── chain ── device ──► muxer ◄── hosts: vm.vsock, vm.vsock_<port>
//!                                       │
//!                     connection (pure) ┴ credit, backlog
//! ```

pub mod backend;
pub mod backlog;
pub mod chain;
pub mod connection;
pub mod credit;
pub mod device;
pub mod greeting;
pub mod header;
pub mod limits;
pub mod muxer;
pub mod poll;
pub mod streams;
pub mod verdict;
