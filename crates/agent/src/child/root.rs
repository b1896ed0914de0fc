//! The container's root while the agent's own is still in sight.
//!
//! Paths inside the container are resolved by the kernel relative to the root's
//! descriptor (openat2, RESOLVE_IN_ROOT), so no symbolic link of an image or a
//! volume leads out of it.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use casemate_linux::mount::{Within, attach, attr, clone_tree, open_in, set_attributes};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat, readlinkat},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, mkdirat, mknodat},
    unistd::{chdir, fchdir, pivot_root},
};

use crate::error::{Doing, Result};

/// Most symbolic links that are followed on the way to a place (as the kernel's
/// own limit).
const MAX_LINKS: usize = 40;

/// See the module.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// What to make where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Directory,
    File,
}

impl Root {
    /// Takes the tree at `source` as a root of its own, attached at `place` in
    /// the mount namespace of the calling process.
    pub(super) fn attach(source: OwnedFd, place: &str) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let place = open(place, flags, Mode::empty()).doing(|| format!("open {place}"))?;
        attach(source.as_fd(), place.as_fd()).doing(|| "attach the root file system".into())?;
        Ok(Self(source))
    }

    /// A root in which nothing is and nothing can be made, attached at `place`
    /// in the mount namespace of the calling process.
    pub(super) fn empty(place: &str) -> Result<Self> {
        let flags =
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let options = Some("mode=555,size=4k,nr_inodes=1");
        mount(Some("empty"), place, Some("tmpfs"), flags, options)
            .doing(|| "mount an empty root file system".into())?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(
            open(place, flags, Mode::empty()).doing(|| format!("open {place}"))?,
        ))
    }

    /// The root of the calling process.
    pub(super) fn own() -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(
            open("/", flags, Mode::empty()).doing(|| "open /".into())?,
        ))
    }

    /// Opens a path inside, by default without any access to the file
    /// (O_PATH).
    pub(super) fn find(&self, path: &str) -> io::Result<OwnedFd> {
        self.open(path, libc::O_PATH)
    }

    /// Opens a path inside.
    pub(super) fn open(&self, path: impl AsRef<Path>, flags: i32) -> io::Result<OwnedFd> {
        open_in(self.0.as_fd(), path.as_ref(), Within::Root, flags, 0)
    }

    /// The directory at a path, made with its parents where missing.
    pub(super) fn make_directory(&self, path: &str) -> io::Result<OwnedFd> {
        match self.open(path, libc::O_PATH | libc::O_DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make(Path::new(path), Missing::Directory)
            }
            other => other,
        }
    }

    /// What is at a path, or a new empty file with the parents it needs.
    pub(super) fn make_file(&self, path: &str) -> io::Result<OwnedFd> {
        match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make(Path::new(path), Missing::File)
            }
            other => other,
        }
    }

    /// Walks a path part by part and makes what is missing, where a symbolic
    /// link leads nowhere as well: images have /etc/resolv.conf point to a file
    /// that only a running system has.
    fn make(&self, path: &Path, last: Missing) -> io::Result<OwnedFd> {
        let mut parts = names(path);
        // Real directories from the root to where the walk is.
        let mut walked = PathBuf::new();
        let mut place = self.open(".", libc::O_PATH)?;
        let mut links = 0;
        while let Some(name) = parts.pop_front() {
            if name == ".." {
                walked.pop();
                place = self.open(or_dot(&walked), libc::O_PATH)?;
                continue;
            }
            let missing = match parts.is_empty() {
                true => last,
                false => Missing::Directory,
            };
            let next = open_or_make(place.as_fd(), &name, missing)?;
            match readlinkat(&next, "") {
                Ok(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    let target = Path::new(&target);
                    if target.is_absolute() {
                        walked.clear();
                        place = self.open(".", libc::O_PATH)?;
                    }
                    for part in names(target).into_iter().rev() {
                        parts.push_front(part);
                    }
                }
                // Not a symbolic link.
                Err(_) => {
                    walked.push(&name);
                    // By the whole path: a mount may cover what was found.
                    place = self.open(&walked, libc::O_PATH | libc::O_NOFOLLOW)?;
                }
            }
        }
        Ok(place)
    }

    /// Makes the root the process's only one, and what it was before is gone.
    pub(super) fn enter(self, read_only: bool, propagation: u64) -> Result<()> {
        fchdir(&self.0).doing(|| "chdir to the root file system".into())?;
        // Put on top of each other, the old root comes to lie above the new
        // one (pivot_root(2), "pivot_root(\".\", \".\")").
        pivot_root(".", ".").doing(|| "pivot_root".into())?;
        umount2(".", MntFlags::MNT_DETACH).doing(|| "unmount the agent's root".into())?;
        chdir("/").doing(|| "chdir /".into())?;
        if propagation != 0 {
            set_propagation(self.0.as_fd(), propagation)
                .doing(|| "set propagation of the root file system".into())?;
        }
        if read_only {
            set_attributes(self.0.as_fd(), attr::RDONLY, 0, MsFlags::empty(), false)
                .doing(|| "make the root file system read-only".into())?;
        }
        Ok(())
    }
}

/// A detached copy of the tree at a path of the guest.
pub(super) fn clone_source(path: &str, recursive: bool) -> Result<OwnedFd> {
    clone_tree(Path::new(path), recursive).doing(|| format!("open {path}"))
}

/// Sets MS_SHARED and the like, with MS_REC for all below.
pub(super) fn set_propagation(mount: BorrowedFd<'_>, propagation: u64) -> io::Result<()> {
    let flags = MsFlags::from_bits_retain(propagation);
    let recursive = flags.contains(MsFlags::MS_REC);
    set_attributes(mount, 0, 0, flags - MsFlags::MS_REC, recursive)
}

/// Opens an entry of a directory itself (not what it links to), making it if
/// it is missing.
fn open_or_make(directory: BorrowedFd<'_>, name: &OsStr, missing: Missing) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::ENOENT) => {}
        other => return Ok(other?),
    }
    let mode = Mode::from_bits_retain(0o755);
    let made = match missing {
        Missing::Directory => mkdirat(directory, name, mode),
        Missing::File => mknodat(directory, name, SFlag::S_IFREG, mode, 0),
    };
    match made {
        // Somebody else was faster; a volume can be in use elsewhere.
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(openat(directory, name, flags, Mode::empty())?)
}

/// Names of a path; the root for `..` is above the first of them.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn or_dot(path: &Path) -> &Path {
    match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root(fs::File::open(directory.path()).unwrap().into());
        (directory, root)
    }

    #[test]
    fn missing_places_are_made() {
        let (directory, root) = root();
        root.make_directory("/a/b/c").unwrap();
        root.make_file("a/b/file").unwrap();
        assert!(directory.path().join("a/b/c").is_dir());
        assert!(directory.path().join("a/b/file").is_file());
        // What is there stays.
        fs::write(directory.path().join("a/b/file"), "kept").unwrap();
        root.make_file("/a/b/file").unwrap();
        assert_eq!(
            fs::read(directory.path().join("a/b/file")).unwrap(),
            b"kept"
        );
    }

    #[test]
    fn a_link_to_nowhere_is_completed_inside() {
        let (directory, root) = root();
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        symlink(
            "../run/resolve/stub",
            directory.path().join("etc/resolv.conf"),
        )
        .unwrap();
        symlink(outside.path(), directory.path().join("out")).unwrap();
        symlink("../../../../up", directory.path().join("etc/up")).unwrap();
        root.make_file("/etc/resolv.conf").unwrap();
        assert!(directory.path().join("run/resolve/stub").is_file());
        root.make_file("/out/x").unwrap();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let inside = outside.path().strip_prefix("/").unwrap();
        assert!(directory.path().join(inside).join("x").is_file());
        root.make_directory("/etc/up/y").unwrap();
        assert!(directory.path().join("up/y").is_dir());
    }

    #[test]
    fn links_in_a_circle_end() {
        let (directory, root) = root();
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        let error = root.make(Path::new("a/c"), Missing::File).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        let error = root.make_file("/a").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_file_is_no_directory() {
        let (directory, root) = root();
        fs::write(directory.path().join("file"), "").unwrap();
        for path in ["file", "file/below"] {
            let error = root.make_directory(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{path}");
        }
    }
}
