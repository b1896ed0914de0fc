//! What the guest has read of a file stays in its memory while the file stays
//! the same.
//!
//! FUSE lets a server say at each open whether the pages that the guest has of
//! the file are still good (FOPEN_KEEP_CACHE). virtiofsd says always or never,
//! by its cache policy; never means that every start of a program reads the
//! program and its libraries again, and takes the pages from those who run it.
//! Here they are good when the file is as it was at the last open, which is what
//! NFS promises (close-to-open): who opens a file after another has written and
//! closed it sees what was written.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs::File,
    io,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use virtiofsd::{
    filesystem::{
        Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply,
        OpenOptions, SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader,
        ZeroCopyWriter,
    },
    fuse::{Attr, SetattrIn},
    passthrough::PassthroughFs,
};

/// Two changes within one tick of the kernel's clock look like one: a file that
/// had changed so shortly before an open may have changed after it.
const TICK: Duration = Duration::from_millis(50);

/// A file's contents, as far as attributes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: Duration,
    changed: Duration,
}

impl Version {
    fn of(attributes: &Attr) -> Self {
        Self {
            size: attributes.size,
            modified: Duration::new(attributes.mtime, attributes.mtimensec),
            changed: Duration::new(attributes.ctime, attributes.ctimensec),
        }
    }

    /// Whether it is certain at `now` that a later change will show.
    fn is_settled(&self, now: Duration) -> bool {
        let last = self.modified.max(self.changed);
        now.checked_sub(last).is_some_and(|age| age > TICK)
    }
}

/// The versions that the guest has pages of, by inode. Shared by the threads of
/// the back end; held for a look-up.
#[derive(Debug, Default)]
struct Known(Mutex<HashMap<u64, Version>>);

impl Known {
    /// Whether the guest's pages are still good; from now on they are of this
    /// version.
    fn keeps(&self, inode: u64, version: Version, now: Duration) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match version.is_settled(now) {
            true => known.insert(inode, version),
            false => known.remove(&inode),
        };
        before == Some(version)
    }

    fn forget(&self, inode: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&inode);
    }
}

/// virtiofsd's file server with this promise.
pub(crate) struct Fresh {
    files: PassthroughFs,
    /// Absent where the cache policy decides for all files.
    known: Option<Known>,
}

impl Fresh {
    /// Serves `files`; `judge` tells whether files are looked at one by one.
    pub(super) fn new(files: PassthroughFs, judge: bool) -> Self {
        Self {
            files,
            known: judge.then(Known::default),
        }
    }
}

/// Methods that are virtiofsd's own.
macro_rules! forward {
    ($(fn $name:ident $(<$generic:ident: $bound:ident>)? (&self $(, $argument:ident: $kind:ty)* $(,)?) $(-> $result:ty)?;)*) => {
        $(
            fn $name $(<$generic: $bound>)? (&self $(, $argument: $kind)*) $(-> $result)? {
                self.files.$name($($argument),*)
            }
        )*
    };
}

type Inode = u64;
type Handle = u64;
type Created = (Entry, Option<Handle>, OpenOptions);
type Opened = (Option<Handle>, OpenOptions);

impl FileSystem for Fresh {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn open(&self, ctx: Context, inode: Inode, kill_priv: bool, flags: u32) -> io::Result<Opened> {
        let (handle, mut options) = self.files.open(ctx, inode, kill_priv, flags)?;
        if let Some(known) = &self.known {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            match (self.files.getattr(ctx, inode, handle), now) {
                (Ok((attributes, _)), Ok(now)) => {
                    if known.keeps(inode, Version::of(&attributes), now) {
                        options |= OpenOptions::KEEP_CACHE;
                    }
                }
                _ => known.forget(inode),
            }
        }
        Ok((handle, options))
    }

    fn forget(&self, ctx: Context, inode: Inode, count: u64) {
        // It may still be known to the guest: then it is read once more.
        if let Some(known) = &self.known {
            known.forget(inode);
        }
        self.files.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(Inode, u64)>) {
        if let Some(known) = &self.known {
            requests.iter().for_each(|(inode, _)| known.forget(*inode));
        }
        self.files.batch_forget(ctx, requests);
    }

    forward! {
        fn init(&self, capable: FsOptions) -> io::Result<FsOptions>;
        fn destroy(&self);
        fn lookup(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<Entry>;
        fn getattr(&self, ctx: Context, inode: Inode, handle: Option<Handle>) -> io::Result<(Attr, Duration)>;
        fn setattr(&self, ctx: Context, inode: Inode, attr: SetattrIn, handle: Option<Handle>, valid: SetattrValid) -> io::Result<(Attr, Duration)>;
        fn readlink(&self, ctx: Context, inode: Inode) -> io::Result<Vec<u8>>;
        fn symlink(&self, ctx: Context, linkname: &CStr, parent: Inode, name: &CStr, extensions: Extensions) -> io::Result<Entry>;
        fn mknod(&self, ctx: Context, inode: Inode, name: &CStr, mode: u32, rdev: u32, umask: u32, extensions: Extensions) -> io::Result<Entry>;
        fn mkdir(&self, ctx: Context, parent: Inode, name: &CStr, mode: u32, umask: u32, extensions: Extensions) -> io::Result<Entry>;
        fn unlink(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn rmdir(&self, ctx: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn rename(&self, ctx: Context, olddir: Inode, oldname: &CStr, newdir: Inode, newname: &CStr, flags: u32) -> io::Result<()>;
        fn link(&self, ctx: Context, inode: Inode, newparent: Inode, newname: &CStr) -> io::Result<Entry>;
        fn create(&self, ctx: Context, parent: Inode, name: &CStr, mode: u32, kill_priv: bool, flags: u32, umask: u32, extensions: Extensions) -> io::Result<Created>;
        fn read<W: ZeroCopyWriter>(&self, ctx: Context, inode: Inode, handle: Handle, w: W, size: u32, offset: u64, lock_owner: Option<u64>, flags: u32) -> io::Result<usize>;
        fn write<R: ZeroCopyReader>(&self, ctx: Context, inode: Inode, handle: Handle, r: R, size: u32, offset: u64, lock_owner: Option<u64>, delayed_write: bool, kill_priv: bool, flags: u32) -> io::Result<usize>;
        fn flush(&self, ctx: Context, inode: Inode, handle: Handle, lock_owner: u64) -> io::Result<()>;
        fn fsync(&self, ctx: Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()>;
        fn fallocate(&self, ctx: Context, inode: Inode, handle: Handle, mode: u32, offset: u64, length: u64) -> io::Result<()>;
        fn release(&self, ctx: Context, inode: Inode, flags: u32, handle: Handle, flush: bool, flock_release: bool, lock_owner: Option<u64>) -> io::Result<()>;
        fn statfs(&self, ctx: Context, inode: Inode) -> io::Result<nix::libc::statvfs64>;
        fn setxattr(&self, ctx: Context, inode: Inode, name: &CStr, value: &[u8], flags: u32, extra_flags: SetxattrFlags) -> io::Result<()>;
        fn getxattr(&self, ctx: Context, inode: Inode, name: &CStr, size: u32) -> io::Result<GetxattrReply>;
        fn listxattr(&self, ctx: Context, inode: Inode, size: u32) -> io::Result<ListxattrReply>;
        fn removexattr(&self, ctx: Context, inode: Inode, name: &CStr) -> io::Result<()>;
        fn opendir(&self, ctx: Context, inode: Inode, flags: u32) -> io::Result<Opened>;
        fn readdir(&self, ctx: Context, inode: Inode, handle: Handle, size: u32, offset: u64) -> io::Result<Self::DirIter>;
        fn fsyncdir(&self, ctx: Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()>;
        fn releasedir(&self, ctx: Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()>;
        fn access(&self, ctx: Context, inode: Inode, mask: u32) -> io::Result<()>;
        fn lseek(&self, ctx: Context, inode: Inode, handle: Handle, offset: u64, whence: u32) -> io::Result<u64>;
        fn copyfilerange(&self, ctx: Context, inode_in: Inode, handle_in: Handle, offset_in: u64, inode_out: Inode, handle_out: Handle, offset_out: u64, len: u64, flags: u64) -> io::Result<usize>;
        fn syncfs(&self, ctx: Context, inode: Inode) -> io::Result<()>;
        fn getlk(&self) -> io::Result<()>;
        fn setlk(&self) -> io::Result<()>;
        fn setlkw(&self) -> io::Result<()>;
        fn ioctl(&self) -> io::Result<()>;
        fn bmap(&self) -> io::Result<()>;
        fn poll(&self) -> io::Result<()>;
        fn notify_reply(&self) -> io::Result<()>;
        fn tmpfile(&self) -> io::Result<Created>;
    }
}

impl SerializableFileSystem for Fresh {
    forward! {
        fn prepare_serialization(&self, cancel: Arc<AtomicBool>);
        fn serialize(&self, state_pipe: File) -> io::Result<()>;
        fn deserialize_and_apply(&self, state_pipe: File) -> io::Result<()>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(size: u64, modified_ms: u64) -> Version {
        let modified = Duration::from_millis(modified_ms);
        Version {
            size,
            modified,
            changed: modified,
        }
    }

    #[test]
    fn pages_are_kept_while_the_file_is_the_same() {
        let known = Known::default();
        let now = Duration::from_secs(10);
        assert!(!known.keeps(1, version(5, 1000), now), "the first open");
        assert!(known.keeps(1, version(5, 1000), now));
        assert!(!known.keeps(2, version(5, 1000), now), "another file");
        assert!(!known.keeps(1, version(5, 1001), now), "written");
        assert!(!known.keeps(1, version(6, 1001), now), "grown");
        assert!(known.keeps(1, version(6, 1001), now));
        let relinked = Version {
            changed: Duration::from_secs(3),
            ..version(6, 1001)
        };
        assert!(!known.keeps(1, relinked, now), "its time was set back");
        known.forget(1);
        assert!(!known.keeps(1, relinked, now));
    }

    #[test]
    fn what_has_just_changed_may_change_again_unseen() {
        let known = Known::default();
        let at = Duration::from_millis;
        assert!(!known.keeps(1, version(5, 1000), at(1010)));
        assert!(!known.keeps(1, version(5, 1000), at(1020)));
        assert!(
            !known.keeps(1, version(5, 1000), at(2000)),
            "read since, maybe before"
        );
        assert!(known.keeps(1, version(5, 1000), at(2001)));
        // Times of the future prove nothing.
        assert!(!known.keeps(2, version(5, 9000), at(1000)));
        assert!(!known.keeps(2, version(5, 9000), at(1001)));
    }
}
