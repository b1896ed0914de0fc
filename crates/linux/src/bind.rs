//! Bind mounts of what a descriptor refers to, where a path would be looked up
//! a second time and might lead elsewhere.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::check;

/// A detached copy of the file or directory that `place` refers to (which may
/// be an O_PATH descriptor), with what is mounted below it when `recursive`.
/// It vanishes with the descriptor unless it is attached.
///
/// # Errors
/// EINVAL when the place is not in a mount of this mount namespace.
pub fn clone_at(place: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: the path is the empty C string.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags)
    })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use super::*;
    use crate::mount::{Within, open_in};

    #[test]
    fn a_copy_shows_the_same_files() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: cloning a mount needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("name"), "content").unwrap();
        let place = fs::File::open(directory.path()).unwrap();
        let copy = clone_at(place.as_fd(), false).unwrap();
        let file = open_in(
            copy.as_fd(),
            "name".as_ref(),
            Within::Root,
            libc::O_RDONLY,
            0,
        )
        .unwrap();
        assert_eq!(io::read_to_string(fs::File::from(file)).unwrap(), "content");
    }
}
