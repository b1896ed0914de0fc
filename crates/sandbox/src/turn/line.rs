//! The line: a file that the next one has locked. The kernel gives the lock to
//! those who wait for it about in the order in which they came.

use std::{fs::File, io, os::fd::AsFd, os::unix::fs::OpenOptionsExt, path::Path};

use casemate_linux::{
    descriptor,
    process::{Birth, Child, die_with_parent, spawn},
    reactor::register_readable,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
};

/// A place in the line.
pub(super) struct Line(File);

/// The first place. It is left when this is dropped.
pub(super) struct Next {
    _locked: Flock<File>,
}

impl Line {
    /// A new place in the line of this name, which is made.
    ///
    /// # Errors
    /// A full disk.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
        Ok(Self(file))
    }

    /// Waits until it is the first.
    ///
    /// # Errors
    /// When no process can be made.
    pub(super) async fn wait(self) -> io::Result<Next> {
        let mut file = self.0;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Ok(Next { _locked: locked }),
                Err((file, Errno::EWOULDBLOCK)) => file,
                Err((_, errno)) => return Err(errno.into()),
            };
            // Whoever ends it has us ask again.
            Waiting::start(&file)?.ended().await?;
        }
    }
}

/// A process that waits for the lock. A lock belongs to the open file and not to
/// the process, so that we have it when it has ended; a thread of ours could not be
/// told to stop waiting. Dropping this ends it.
struct Waiting(Child);

impl Waiting {
    fn start(file: &File) -> io::Result<Self> {
        let parent = std::process::id();
        let child = spawn(Birth::default(), || {
            let locked = die_with_parent(parent)
                // What others closed must not stay open here.
                .and_then(|()| descriptor::arrange_for_exec(&[file.as_fd()]))
                .and_then(|()| lock(File::from(descriptor::inherited(3)?)));
            i32::from(locked.is_err())
        })?;
        Ok(Self(child))
    }

    async fn ended(self) -> io::Result<()> {
        let ended = register_readable(self.0.pidfd().try_clone_to_owned()?)?;
        ended.readable().await?.retain_ready();
        Ok(())
    }
}

/// Locks it for those who have it open as well.
fn lock(file: File) -> io::Result<()> {
    match Flock::lock(file, FlockArg::LockExclusive) {
        // To drop it would be to unlock it for all.
        Ok(locked) => std::mem::forget(locked),
        Err((_, errno)) => return Err(errno.into()),
    }
    Ok(())
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It ends at once, wherever it is.
        let _ = self.0.signal(libc::SIGKILL);
        let _ = self.0.wait();
    }
}
