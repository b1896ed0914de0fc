//! Slots: named pipes, each locked by who has a turn, and open for writing as long
//! as that one has it. Whoever waits has them open for reading and hears from the
//! kernel that a pipe has lost its last writer, which it does after its lock.

use std::{
    fs::File,
    future::poll_fn,
    io,
    os::{fd::OwnedFd, unix::fs::FileTypeExt, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    task::Poll,
};

use casemate_linux::reactor::register_readable;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
    sys::stat::Mode,
    unistd::mkfifo,
};
use tokio::io::unix::AsyncFd;

/// A slot that is ours until this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _locked: Flock<File>,
}

/// Waits until one of them is free, and takes it.
///
/// # Errors
/// A full disk; something else of that name.
pub(super) async fn any_of(slots: &[PathBuf]) -> io::Result<Slot> {
    loop {
        if let Some(slot) = free_of(slots)? {
            return Ok(slot);
        }
        // What ends from here on is heard.
        let ends = slots.iter().map(|path| ends(path));
        let ends = ends.collect::<io::Result<Vec<_>>>()?;
        if let Some(slot) = free_of(slots)? {
            return Ok(slot);
        }
        first(&ends).await?;
    }
}

fn free_of(slots: &[PathBuf]) -> io::Result<Option<Slot>> {
    let mut taken = slots.iter().filter_map(|path| take(path).transpose());
    taken.next().transpose()
}

/// Takes one, unless somebody else has it.
fn take(path: &Path) -> io::Result<Option<Slot>> {
    match mkfifo(path, Mode::from_bits_truncate(0o600)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let pipe = open(path, true)?;
    match Flock::lock(pipe, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => Ok(Some(Slot { _locked: locked })),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Is ready when the last one who has the pipe open for writing has closed it.
fn ends(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    register_readable(open(path, false)?.into())
}

async fn first(ends: &[AsyncFd<OwnedFd>]) -> io::Result<()> {
    poll_fn(|context| {
        for end in ends {
            if let Poll::Ready(ended) = end.poll_read_ready(context) {
                return Poll::Ready(ended.map(drop));
            }
        }
        Poll::Pending
    })
    .await
}

/// Opens a pipe without waiting for its other side.
fn open(path: &Path, write: bool) -> io::Result<File> {
    let mut options = File::options();
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let pipe = options.read(true).write(write).custom_flags(flags);
    let pipe = pipe.open(path)?;
    match pipe.metadata()?.file_type().is_fifo() {
        true => Ok(pipe),
        false => Err(io::Error::other(format!("{}: not a pipe", path.display()))),
    }
}
