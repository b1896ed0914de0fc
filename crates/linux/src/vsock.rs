//! What nix lacks for AF_VSOCK.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use crate::check;

/// AF_VSOCK, the level of its socket options.
const LEVEL: i32 = libc::AF_VSOCK;
/// SO_VM_SOCKETS_CONNECT_TIMEOUT of <linux/vm_sockets.h> (64-bit timeval).
const CONNECT_TIMEOUT: i32 = 6;

/// IOCTL_VM_SOCKETS_GET_LOCAL_CID of <linux/vm_sockets.h>: _IO(7, 0xb9).
const GET_LOCAL_CID: libc::c_ulong = 0x07b9;

/// The context id of this machine, where it is a guest: none without a device
/// whose driver is ready.
///
/// # Errors
/// ENOENT when the kernel has no vsock, or `/dev` nothing of it.
pub fn local_cid() -> io::Result<Option<u32>> {
    let device = File::open("/dev/vsock")?;
    let mut cid: libc::c_uint = 0;
    // SAFETY: the kernel writes one int.
    check(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID, &raw mut cid)
    }))?;
    Ok((cid != libc::VMADDR_CID_ANY).then_some(cid))
}

/// How long connect(2) waits for the other side; the kernel's default of two
/// seconds is short for a guest whose host is busy.
///
/// # Errors
/// ENOPROTOOPT when it is no vsock socket.
pub fn set_connect_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let value = libc::timeval {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_usec: timeout.subsec_micros().into(),
    };
    // SAFETY: value is valid for its size.
    check(i64::from(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            LEVEL,
            CONNECT_TIMEOUT,
            (&raw const value).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    }))?;
    Ok(())
}

/// The next connection of a listening socket of any family, nonblocking.
///
/// # Errors
/// EAGAIN when there is none yet.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the peer's address is not asked for.
    let fd = check(i64::from(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    }))?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
