//! The memory of a machine as a file, so that it can be saved and restored.
//!
//! It lies in a file system of its own that only the machine's jail shows. QEMU
//! leaves memory out of what it saves where it is shared and has a name; the
//! file is copied beside that, without what was never used. A process of its own
//! copies, since the monitor has one thread and other things to do.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, fchown},
    },
    path::Path,
};

use casemate_linux::{
    descriptor,
    mount::{Within, attr, open_in, tmpfs},
    process::{Birth, Child, Exit, die_with_parent, spawn},
    reactor::register_readable,
};
use nix::{
    libc::{EIO, ENXIO, O_CREAT, O_EXCL, O_RDWR, SIGKILL},
    unistd::{Whence, lseek},
};

use crate::Identity;

/// The file's name.
pub(crate) const NAME: &str = "ram";

/// As much is read at once: what stays in a processor's cache.
const CHUNK: usize = 256 << 10;

/// What memory is given out by, in bytes.
const PAGE: usize = 4096;

/// The file system for a jail, and the file in it, as large as the memory and
/// without content, which only the machine's user can open.
///
/// # Errors
/// Those of mounting.
pub(crate) fn make(bytes: u64, owner: Identity) -> io::Result<(OwnedFd, File)> {
    let size = bytes.to_string();
    let options = [
        ("size", size.as_str()),
        ("nr_inodes", "2"),
        ("mode", "0755"),
    ];
    let mount = tmpfs(&options, attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
    let flags = O_CREAT | O_EXCL | O_RDWR;
    let file = open_in(
        mount.as_fd(),
        Path::new(NAME),
        Within::Beneath,
        flags,
        0o600,
    )?;
    let file = File::from(file);
    fchown(&file, Some(owner.uid), Some(owner.gid))?;
    file.set_len(bytes)?;
    Ok((mount, file))
}

/// Pages that are all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zeroes {
    /// Are copied like others: they are few.
    Copied,
    /// Are left out, so that they cost nothing later.
    LeftOut,
}

/// A copy that is being made. Dropping it stops that.
pub(crate) struct Copying {
    child: Child,
    reaped: bool,
}

impl Copying {
    /// Copies one file over another, which is as long and empty. What is written is
    /// counted in the cgroup of this `cgroup.procs`, or in the caller's.
    ///
    /// # Errors
    /// When no process can be made.
    pub(crate) fn start(
        from: &File,
        to: &File,
        zeroes: Zeroes,
        group: Option<&File>,
    ) -> io::Result<Self> {
        let parent = std::process::id();
        let child = spawn(Birth::default(), || {
            if let Some(mut procs) = group {
                // Itself (cgroups(7)). It is only an account: the copy counts more.
                let _ = procs.write_all(b"0");
            }
            let copied = die_with_parent(parent)
                // What others closed must not stay open here.
                .and_then(|()| descriptor::arrange_for_exec(&[from.as_fd(), to.as_fd()]))
                .and_then(|()| {
                    let from = File::from(descriptor::inherited(3)?);
                    let to = File::from(descriptor::inherited(4)?);
                    copy(&from, &to, zeroes)
                });
            copied.map_or_else(|error| error.raw_os_error().unwrap_or(EIO), |()| 0)
        })?;
        Ok(Self {
            child,
            reaped: false,
        })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Those of reading and writing: ENOSPC.
    pub(crate) async fn finish(mut self) -> io::Result<()> {
        let ended = register_readable(self.child.pidfd().try_clone_to_owned()?)?;
        let exit = loop {
            let mut ended = ended.readable().await?;
            if let Some(exit) = self.child.try_wait()? {
                break exit;
            }
            ended.clear_ready();
        };
        self.reaped = true;
        match exit {
            Exit::Code(0) => Ok(()),
            Exit::Code(errno) => Err(io::Error::from_raw_os_error(errno)),
            Exit::Signal(_) => Err(io::Error::other(format!("the copying process was {exit}"))),
        }
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        if !self.reaped {
            // It ends at once, wherever it is.
            let _ = self.child.signal(SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Copies all that is not a hole.
fn copy(from: &File, to: &File, zeroes: Zeroes) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut position = 0;
    while let Some((mut begin, end)) = data(from, position)? {
        position = end;
        while begin < end {
            let wanted = CHUNK.min((end - begin) as usize);
            let read = from.read_at(&mut chunk[..wanted], begin as u64)?;
            if read == 0 {
                return Ok(());
            }
            write(to, &chunk[..read], begin as u64, zeroes)?;
            begin += read as i64;
        }
    }
    Ok(())
}

/// The first stretch of data from here on.
fn data(file: &File, position: i64) -> io::Result<Option<(i64, i64)>> {
    let begin = match lseek(file, position, Whence::SeekData) {
        Ok(begin) => begin,
        Err(errno) if errno as i32 == ENXIO => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    Ok(Some((begin, lseek(file, begin, Whence::SeekHole)?)))
}

fn write(to: &File, bytes: &[u8], at: u64, zeroes: Zeroes) -> io::Result<()> {
    if zeroes == Zeroes::Copied {
        return to.write_all_at(bytes, at);
    }
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let mut offset = 0;
    // Pages in a row that have something are written as one.
    for run in bytes
        .chunks(PAGE)
        .collect::<Vec<_>>()
        .chunk_by(|one, next| is_zero(one) == is_zero(next))
    {
        let length = run.iter().map(|page| page.len()).sum::<usize>();
        if !is_zero(run[0]) {
            to.write_all_at(&bytes[offset..offset + length], at + offset as u64)?;
        }
        offset += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn sparse(pages: u64) -> File {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(pages * PAGE as u64).unwrap();
        file
    }

    #[tokio::test]
    async fn a_copy_has_what_was_there_and_its_holes() {
        let pages = 1000;
        let from = sparse(pages);
        let page = |n: u64| n * PAGE as u64;
        from.write_all_at(&[1; 3 * PAGE], page(10)).unwrap();
        from.write_all_at(&[0; PAGE], page(11)).unwrap();
        from.write_all_at(&vec![2; 2 * CHUNK], page(200)).unwrap();
        from.write_all_at(b"end", page(pages) - 3).unwrap();
        let held = page(3) + 2 * CHUNK as u64 + page(1);
        for (zeroes, expected) in [
            (Zeroes::Copied, held),
            (Zeroes::LeftOut, held - PAGE as u64),
        ] {
            let to = sparse(pages);
            let group = tempfile::tempfile().unwrap();
            let copying = Copying::start(&from, &to, zeroes, Some(&group)).unwrap();
            copying.finish().await.unwrap();
            let mut joined = [0; 2];
            assert_eq!(group.read_at(&mut joined, 0).unwrap(), 1);
            assert_eq!(joined[0], b'0');
            let mut one = vec![0; page(pages) as usize];
            let mut other = one.clone();
            from.read_exact_at(&mut one, 0).unwrap();
            to.read_exact_at(&mut other, 0).unwrap();
            assert!(one == other, "{zeroes:?}");
            assert_eq!(to.metadata().unwrap().blocks() * 512, expected);
        }
    }

    #[tokio::test]
    async fn a_copy_that_fails_says_why() {
        let from = sparse(4);
        from.write_all_at(&[1; PAGE], 0).unwrap();
        let to = File::open("/dev/null").unwrap();
        let copying = Copying::start(&from, &to, Zeroes::Copied, None).unwrap();
        let error = copying.finish().await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EBADF));
    }

    #[test]
    fn memory_is_its_owners_alone() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let owner = Identity { uid: 77, gid: 78 };
        let (_mount, file) = make(1 << 20, owner).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (77, 78));
        assert_eq!((metadata.mode() & 0o777, metadata.len()), (0o600, 1 << 20));
        assert_eq!(metadata.blocks(), 0);
    }
}
