//! Kernel keyrings (keyctl(2)).

use std::io;

use crate::{c_string, check};

const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;

/// Gives the calling process a session keyring of this name: a new one, or the
/// one of the name that it may search.
///
/// # Errors
/// ENOSYS without key support, EDQUOT.
pub fn join_session(name: &str) -> io::Result<()> {
    let name = c_string(name.as_bytes())?;
    // SAFETY: the name is a valid C string for the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(())
}
