//! The host's files as another process sees them: mounts that one client has
//! made do not show in everybody's mount namespace, and a path means something
//! only in the namespace and below the root of who wrote it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{chroot, fchdir},
};

use crate::namespace::on_a_thread;

/// A mount namespace, and a root in it.
#[derive(Debug)]
pub struct View {
    namespace: OwnedFd,
    root: OwnedFd,
}

impl View {
    /// That of this thread.
    ///
    /// # Errors
    /// EMFILE; ENOENT without /proc.
    pub fn own() -> io::Result<Self> {
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open("/")?;
        Ok(Self {
            namespace: File::open("/proc/thread-self/ns/mnt")?.into(),
            root: root.into(),
        })
    }

    /// From the descriptors that [`View::descriptors`] has given somebody else.
    pub fn from_descriptors([namespace, root]: [OwnedFd; 2]) -> Self {
        Self { namespace, root }
    }

    /// Another hold on the same.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            namespace: self.namespace.try_clone()?,
            root: self.root.try_clone()?,
        })
    }

    /// To be handed over.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.namespace.as_fd(), self.root.as_fd()]
    }

    /// Takes this process there for good.
    ///
    /// # Errors
    /// EPERM without the right to enter it; EINVAL in a process of many threads.
    pub fn enter(self) -> io::Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNS)?;
        fchdir(&self.root)?;
        chroot(".")?;
        Ok(())
    }

    /// Does something where this view is; the calling thread never leaves its
    /// place.
    ///
    /// # Errors
    /// EPERM without the right to enter it; EAGAIN when no thread can be made.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| {
            // Root and working directory are those of all threads, until then.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.namespace, CloneFlags::CLONE_NEWNS)?;
            // Now in the root of the namespace, which may not be the one.
            fchdir(&self.root)?;
            chroot(".")?;
            Ok(work())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::mount::{MsFlags, mount};

    use super::*;

    #[test]
    fn what_another_has_mounted_is_seen_from_there_only() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a mount namespace needs root");
            return;
        }
        const NONE: Option<&str> = None;
        let folder = tempfile::tempdir().unwrap();
        let (root, file) = (folder.path(), folder.path().join("inner/file"));
        fs::create_dir(root.join("inner")).unwrap();
        let (above, below) = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
            mount(
                NONE,
                &root.join("inner"),
                Some("tmpfs"),
                MsFlags::empty(),
                NONE,
            )?;
            fs::write(&file, "here")?;
            let above = View::own()?;
            chroot(root)?;
            // Without a /proc there: the namespace is the same.
            let namespace = above.namespace.try_clone()?;
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let root = OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open("/")?;
            Ok((above, View::from_descriptors([namespace, root.into()])))
        })
        .unwrap();
        let read = |path: &std::path::Path| fs::read_to_string(path).ok();
        assert_eq!(
            above.within(|| read(&file)).unwrap().as_deref(),
            Some("here")
        );
        let inner = std::path::Path::new("/inner/file");
        assert_eq!(
            below.within(|| read(inner)).unwrap().as_deref(),
            Some("here")
        );
        assert_eq!(read(&file), None);
        // The caller has kept its working directory as well.
        let before = std::env::current_dir().unwrap();
        above.within(|| ()).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
