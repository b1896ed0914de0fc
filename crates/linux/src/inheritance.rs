//! Which descriptors a child keeps.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

use crate::check;

/// Closes every descriptor of this process but the given ones and 0, 1, 2.
///
/// For a child between fork and exec: elsewhere it would pull descriptors from
/// under their owners.
///
/// # Errors
/// None known.
pub fn close_all_except(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close(first, RawFd::MAX)
}

fn close(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: integers only; the caller's promise about owners is in the docs.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::{
        descriptor::memory_file,
        process::{Birth, Exit, spawn},
    };

    #[test]
    fn only_what_is_named_stays_open() {
        let files: Vec<_> = (0..6).map(|_| memory_file("file").unwrap()).collect();
        let child = spawn(Birth::default(), || {
            close_all_except(&[files[4].as_fd(), files[1].as_fd()]).unwrap();
            let mut open = 0;
            for (n, file) in files.iter().enumerate() {
                open |= i32::from(file.metadata().is_ok()) << n;
            }
            open
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(0b010010));
    }
}
