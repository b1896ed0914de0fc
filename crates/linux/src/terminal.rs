//! Pseudo terminals (ioctl_tty(2)).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::check;

/// TIOCGPTPEER of <asm-generic/ioctls.h>: _IO('T', 0x41).
const TIOCGPTPEER: libc::c_ulong = 0x5441;
/// TIOCVHANGUP of the same: _IO('T', 0x37).
const TIOCVHANGUP: libc::c_ulong = 0x5437;

/// The other end of a pseudo terminal master, unlocked and opened without a
/// path, so that it is of the same instance whatever is mounted where.
///
/// # Errors
/// ENOTTY when `master` is not a pseudo terminal master.
pub fn open_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check(i64::from(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked)
    }))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes the flags by value.
    let fd = check(i64::from(unsafe {
        libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags)
    }))?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes a terminal the controlling one of the calling session leader.
///
/// # Errors
/// EPERM when the process leads no session or has a terminal already.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer by value.
    check(i64::from(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0)
    }))?;
    Ok(())
}

/// Takes the terminal behind a pseudo terminal master away from everybody who
/// uses it, as if all copies of the master were closed: its session gets
/// SIGHUP, reads give end of file, writes EIO.
///
/// # Errors
/// ENOTTY, and EPERM without CAP_SYS_ADMIN.
pub fn hang_up(master: BorrowedFd<'_>) -> io::Result<()> {
    let peer = open_peer(master)?;
    // SAFETY: TIOCVHANGUP takes no argument.
    check(i64::from(unsafe {
        libc::ioctl(peer.as_raw_fd(), TIOCVHANGUP)
    }))?;
    Ok(())
}

/// The size of a terminal: columns and rows, both 0 when nobody has set it.
///
/// # Errors
/// ENOTTY.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    // SAFETY: winsize is plain data; zero is a valid value of every field.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: size is valid for writing.
    check(i64::from(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size)
    }))?;
    Ok((size.ws_col, size.ws_row))
}

/// Sets the size of a terminal; its foreground processes get SIGWINCH.
///
/// # Errors
/// ENOTTY.
pub fn resize(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(i64::from(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
    }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::fd::AsFd,
    };

    use super::*;

    #[test]
    fn the_peer_is_the_other_end() {
        let mut master = File::options()
            .read(true)
            .write(true)
            .open("/dev/ptmx")
            .unwrap();
        let peer = open_peer(master.as_fd()).unwrap();
        resize(master.as_fd(), 91, 17).unwrap();
        File::from(peer).write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        master.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        let null = File::open("/dev/null").unwrap();
        assert_eq!(
            open_peer(null.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
    }

    #[test]
    fn who_uses_a_terminal_that_is_hung_up_is_told() {
        let master = File::options()
            .read(true)
            .write(true)
            .open("/dev/ptmx")
            .unwrap();
        let mut peer = File::from(open_peer(master.as_fd()).unwrap());
        match hang_up(master.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: without CAP_SYS_ADMIN");
            }
            result => {
                result.unwrap();
                assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
                let write = peer.write(b"x").unwrap_err();
                assert_eq!(write.raw_os_error(), Some(libc::EIO));
            }
        }
    }
}
