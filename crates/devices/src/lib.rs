//! The device process of a sandbox: everything on the host that parses what a
//! guest writes into its virtqueues.
//!
//! ```text
//!  monitor ──(listening sockets, options)──► device process, jailed
//!                                             ├─ vhost-user-fs:    the share    ◄── guest's files
//!  VMM ══ vhost-user, guest memory ══════════►└─ vhost-user-vsock: unix sockets ◄── guest's vsock
//! ```
//!
//! The monitor starts it as a process of its own, root in its own mount
//! namespace, with the hidden verb `devices`; the verb calls [`main`], which
//! enters the jail, builds both devices inside, and serves until the VMM hangs
//! up on both. [`CommandLine`] is what monitor and verb agree on.
//!
//! A guest that breaks a protocol loses the connection or the device, never
//! more: see [`vsock`] and [`jail`]. What may fail before is in [`Error`].

mod command_line;
mod error;
pub mod jail;
mod logging;
mod options;
mod process;
mod share;
pub mod vsock;

pub use command_line::UsageError;
pub use error::Error;
pub use options::{CommandLine, Inodes, Options, Settings, SyscallPolicy};
pub use process::{main, run};
pub use vsock::limits::Limits;
