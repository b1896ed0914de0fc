//! The jail of the device process, closed in two steps.
//!
//! [`Jail::enter`] takes the process out of the host: namespaces of its own, no
//! network, and a mount tree whose root *is* the share. What the file server
//! needs from outside it gets as open descriptors.
//!
//! [`seal`] takes away what is left: capabilities, the rest of the file system
//! (Landlock), system calls (seccomp). All of these belong to the calling
//! thread and are inherited, so no other thread may exist yet.

mod capabilities;
mod landlock;
mod limits;
mod seccomp;
mod tree;

use std::io;

pub use self::limits::raise_descriptor_limit;
pub use self::tree::Jail;

use crate::options::{Inodes, SyscallPolicy};

/// A wall that could not be put up.
#[derive(Debug, thiserror::Error)]
#[error("close the jail: {what}: {source}")]
pub struct Error {
    what: &'static str,
    source: io::Error,
}

/// Names the step for an I/O error.
fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error {
        what,
        source: source.into(),
    }
}

/// Gives up everything that serving files and sockets does not take.
///
/// # Errors
/// A wall that cannot be put up, except that a kernel without Landlock is
/// accepted and said in the log.
pub fn seal(inodes: Inodes, syscalls: SyscallPolicy) -> Result<(), Error> {
    capabilities::drop_all_but_file_sharing(inodes)?;
    nix::sys::prctl::set_no_new_privs().map_err(failed("no new privileges"))?;
    let landlock = landlock::restrict(inodes)?;
    seccomp::restrict(inodes, syscalls)?;
    tracing::info!(landlock, "jail closed");
    Ok(())
}
