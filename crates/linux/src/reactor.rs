//! Descriptors in Tokio's reactor.
//!
//! Tokio cannot know that a type keeps its descriptor open and unchanged while
//! it is registered; for the two owning types of the standard library it is so.

use std::{fs::File, io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a file for what `interest` says.
///
/// # Errors
/// The file back, with EPERM when it cannot be polled (epoll(7)).
pub fn register_file(file: File, interest: Interest) -> Result<AsyncFd<File>, (File, io::Error)> {
    // SAFETY: a File owns its descriptor, and AsyncFd hands out only shared
    // references to it, through which it cannot be replaced or closed.
    unsafe { AsyncFd::register_with_interest(file, interest) }.map_err(|error| error.into_parts())
}

/// Registers a descriptor that becomes readable when something has happened,
/// such as a pidfd.
///
/// # Errors
/// When it cannot be polled.
pub fn register_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}

/// Registers a descriptor for what `interest` says.
///
/// # Errors
/// When it cannot be polled.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as above, for an OwnedFd.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| error.into_parts().1)
}
