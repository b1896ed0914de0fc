//! Descriptors of other processes.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::check;

/// A copy of the descriptor that a process has under `number`
/// (pidfd_getfd(2)), closed by exec.
///
/// # Errors
/// EBADF when it has none there, EPERM without the right to trace it.
pub fn copy_of(process: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use super::*;
    use crate::process::{Birth, spawn};

    #[test]
    fn a_pipe_is_taken_from_a_child() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: tracing a child may need root");
            return;
        }
        let (mut told, tell) = io::pipe().unwrap();
        let child = spawn(Birth::default(), || {
            let (reader, writer) = io::pipe().unwrap();
            io::Write::write_all(&mut &writer, b"mine").unwrap();
            let number = reader.as_raw_fd().to_ne_bytes();
            io::Write::write_all(&mut &tell, &number).unwrap();
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        let mut number = [0; 4];
        told.read_exact(&mut number).unwrap();
        let reader = copy_of(child.pidfd(), RawFd::from_ne_bytes(number)).unwrap();
        let mut text = [0; 4];
        File::from(reader).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"mine");
        assert_eq!(
            copy_of(child.pidfd(), 999).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        child.signal(libc::SIGKILL).unwrap();
        child.wait().unwrap();
    }
}
