//! Work in another network or mount namespace, by a thread of its own that ends
//! with it: the calling thread never leaves its place.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::check;

/// Does something in the network namespace that the descriptor names.
///
/// # Errors
/// EINVAL when it names none, EPERM without the right to enter it; EAGAIN when
/// no thread can be made.
pub fn within_network<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    on_a_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Does something in the mount namespace that the descriptor names, with its
/// root as root and current directory.
///
/// # Errors
/// As [`within_network`].
pub fn within_mounts<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    on_a_thread(|| {
        // Threads share root and current directory, and setns(2) changes both.
        unshare(CloneFlags::CLONE_FS)?;
        setns(namespace, CloneFlags::CLONE_NEWNS)?;
        Ok(work())
    })
}

/// Does something in a new network namespace, which goes when nobody holds it.
///
/// # Errors
/// EPERM without the right to make one.
pub fn within_new_network<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// The number by which address programs know the network namespace of a socket
/// (SO_NETNS_COOKIE; it is never given twice).
///
/// # Errors
/// ENOPROTOOPT before Linux 5.14.
pub fn network_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: cookie is valid for writes of its size, which size tells.
    check(i64::from(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    }))?;
    Ok(cookie)
}

pub(crate) fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().expect("the work does not panic")
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd, os::unix::fs::MetadataExt};

    use super::*;

    fn inode() -> u64 {
        fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    }

    #[test]
    fn the_work_is_elsewhere_and_the_caller_is_not() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a network namespace needs root");
            return;
        }
        let own = inode();
        let (other, file) = within_new_network(|| {
            let file = fs::File::open("/proc/thread-self/ns/net").unwrap();
            (inode(), file)
        })
        .unwrap();
        assert_ne!(own, other);
        assert_eq!(within_network(file.as_fd(), inode).unwrap(), other);
        assert_eq!(inode(), own);
        let no_namespace = fs::File::open("/dev/null").unwrap();
        assert!(within_network(no_namespace.as_fd(), inode).is_err());
    }
}
