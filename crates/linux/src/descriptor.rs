//! File descriptors: inheritance, and anonymous memory files.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::{c_string, check};

/// Closes every descriptor of this process from `first` on (close_range(2)).
///
/// For a child between fork and exec, and for a process right after its start:
/// elsewhere it would pull descriptors from under their owners.
///
/// # Errors
/// None known for a valid range.
pub fn close_from(first: RawFd) -> io::Result<()> {
    close_range(first, RawFd::MAX, 0)
}

/// Marks every descriptor from `first` on to be closed by exec, so that strays
/// inherited from a careless caller reach no child.
///
/// # Errors
/// None known for a valid range.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    close_range(first, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC as i32)
}

fn close_range(first: RawFd, last: RawFd, flags: i32) -> io::Result<()> {
    // SAFETY: integers only; the caller's promise about owners is in the docs.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })?;
    Ok(())
}

/// Puts descriptors at fixed numbers, 3 and up in the order given, open across
/// exec, and closes everything above: what a jailed child is meant to inherit.
/// Call it in a child right before exec.
///
/// # Errors
/// EMFILE.
pub fn arrange_for_exec(descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let first = 3;
    let above = first + descriptors.len() as RawFd;
    // Two moves: a descriptor may stand where another one has to go.
    let mut parked = Vec::with_capacity(descriptors.len());
    for fd in descriptors {
        // SAFETY: integers only; the copy belongs to nobody else.
        parked.push(check(i64::from(unsafe {
            libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above)
        }))? as RawFd);
    }
    for (target, fd) in (first..).zip(parked) {
        // SAFETY: integers only; dup2 leaves the copy open across exec.
        check(i64::from(unsafe { libc::dup2(fd, target) }))?;
    }
    close_from(above)
}

/// An anonymous file in memory, closed by exec.
///
/// # Errors
/// EMFILE, ENOMEM.
pub fn memory_file(name: &str) -> io::Result<File> {
    let name = c_string(name.as_bytes())?;
    // SAFETY: the name is a valid C string for the call.
    let fd = check(i64::from(unsafe {
        libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC)
    }))?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(fd as RawFd) })
}

/// Takes over a descriptor that the parent process placed at a known number.
///
/// # Errors
/// EBADF when it is not open.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    check(i64::from(unsafe {
        libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC)
    }))?;
    // SAFETY: it is open, and by contract with the parent it is ours to close.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd};

    use super::*;
    use crate::process::{Birth, Exit, spawn};

    #[test]
    fn arranged_descriptors_stand_where_they_should() {
        let one = memory_file("one").unwrap();
        let two = memory_file("two").unwrap();
        (&one).write_all(b"1").unwrap();
        (&two).write_all(b"22").unwrap();
        let child = spawn(Birth::default(), || {
            arrange_for_exec(&[two.as_fd(), one.as_fd()]).unwrap();
            let length = |fd| {
                let file = File::from(inherited(fd).unwrap());
                let length = file.metadata().unwrap().len() as i32;
                std::mem::forget(file);
                length
            };
            let closed = inherited(5).is_err();
            length(3) * 100 + length(4) * 10 + i32::from(closed)
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(211));
    }
}
