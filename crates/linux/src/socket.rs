//! Unix sockets: descriptors as messages, and paths longer than `sun_path`.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{Backlog, ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors that one message may carry.
pub const MAX_DESCRIPTORS: usize = 8;

/// Sends bytes together with descriptors (SCM_RIGHTS).
///
/// # Errors
/// EPIPE when the other side is gone; EMSGSIZE for an empty message.
pub fn send_with_descriptors(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    Ok(sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?)
}

/// Receives bytes and the descriptors that came with them, closed by exec.
/// No bytes means the other side has closed.
///
/// # Errors
/// EMSGSIZE when more descriptors came than [`MAX_DESCRIPTORS`]; EAGAIN on a
/// nonblocking socket.
pub fn receive_with_descriptors(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; MAX_DESCRIPTORS]);
    let mut iov = [IoSliceMut::new(bytes)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel made these descriptors for this process now.
            descriptors.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((message.bytes, descriptors))
}

/// Makes this process the one that a listening socket names to its clients
/// (SO_PEERCRED), in place of who bound it.
///
/// # Errors
/// EINVAL when it is not bound.
pub fn take_over(listener: &UnixListener) -> io::Result<()> {
    Ok(nix::sys::socket::listen(listener, Backlog::MAXCONN)?)
}

/// Binds a listening socket at a path of any length.
///
/// # Errors
/// EADDRINUSE when something is there already.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    with_short_path(path, |short| UnixListener::bind(short))
}

/// Connects to a socket at a path of any length.
///
/// # Errors
/// ENOENT, ECONNREFUSED when nobody listens.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    with_short_path(path, |short| UnixStream::connect(short))
}

/// `sun_path` holds 107 bytes, and the state directories that clients give us
/// are longer: the parent directory is named by a descriptor instead.
fn with_short_path<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = File::open(parent)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    act(&short)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::fd::AsFd};

    use super::*;

    #[test]
    fn descriptors_travel_with_their_bytes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send_with_descriptors(ours.as_fd(), b"pipe", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut bytes = [0; 16];
        let (count, mut descriptors) =
            receive_with_descriptors(theirs.as_fd(), &mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"pipe");
        let mut writer = File::from(descriptors.pop().unwrap());
        io::Write::write_all(&mut writer, b"through").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(ours);
        assert_eq!(
            receive_with_descriptors(theirs.as_fd(), &mut bytes)
                .unwrap()
                .0,
            0
        );
    }

    #[test]
    fn a_long_path_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("socket");
        let listener = listen(&path).unwrap();
        connect(&path).unwrap();
        listener.accept().unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
