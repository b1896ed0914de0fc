//! What the guest may see of the host's files.
//!
//! The share is a small tmpfs in a mount namespace of the monitor's own, filled
//! with bind mounts: root file systems and volumes, each in its slot. The
//! device process holds a slave copy of it, so what is mounted and unmounted
//! here shows up there. Nothing shows in the host's own namespace, and the
//! kernel takes everything down with the last process of the namespace.

use std::{
    borrow::Cow,
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use casemate_linux::mount::{self, Within, attr};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// Name of the share in the sandbox's directory.
const DIRECTORY: &str = "share";

/// A step of making or filling the share that failed.
#[derive(Debug, thiserror::Error)]
#[error("share {path} with the guest: {what}: {source}", path = path.display())]
pub struct Error {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

/// The share of one sandbox.
#[derive(Debug)]
pub struct Share {
    path: PathBuf,
    root: OwnedFd,
}

/// What is put into a slot.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Existing file or directory on the host.
    pub source: &'a Path,
    /// Place relative to the share.
    pub slot: Cow<'a, str>,
    /// The guest may not write, whatever it does.
    pub readonly: bool,
    /// With what is mounted below the source.
    pub recursive: bool,
    /// The guest may not write to what is mounted below either.
    pub readonly_below: bool,
    /// With what the host mounts and unmounts below the source later.
    pub follows: bool,
}

/// A copy of what goes into a slot, not there yet.
#[derive(Debug)]
pub struct Taken {
    source: PathBuf,
    slot: String,
    is_directory: bool,
    tree: OwnedFd,
}

impl Entry<'_> {
    /// Takes it, as this thread sees the host's files.
    ///
    /// # Errors
    /// ENOENT when the source has gone.
    pub fn take(&self) -> Result<Taken, Error> {
        let source = self.source;
        let tree =
            mount::clone_tree(source, self.recursive).map_err(failed(source, "clone mount"))?;
        self.of(tree, source.is_dir())
    }

    /// Takes what has been mounted for it already.
    ///
    /// # Errors
    /// When its attributes cannot be set.
    pub fn of(&self, tree: OwnedFd, is_directory: bool) -> Result<Taken, Error> {
        let source = self.source;
        // A copy of a shared mount is its peer: whatever happened to what is mounted
        // below the copy, its end above all, would happen to the host's files.
        let propagation = if self.follows {
            MsFlags::MS_SLAVE
        } else {
            MsFlags::MS_PRIVATE
        };
        // The host serves bytes: it never runs or opens what the guest leaves.
        let inert = attr::NOSUID | attr::NODEV | attr::NOEXEC;
        let mut attributes = vec![(inert, propagation, self.recursive)];
        if self.readonly {
            attributes.push((attr::RDONLY, MsFlags::empty(), self.readonly_below));
        }
        for (set, propagation, recursive) in attributes {
            mount::set_attributes(tree.as_fd(), set, 0, propagation, recursive)
                .map_err(failed(source, "set mount attributes"))?;
        }
        Ok(Taken {
            source: source.to_owned(),
            slot: self.slot.clone().into_owned(),
            is_directory,
            tree,
        })
    }
}

impl Share {
    /// Moves this process into a mount namespace of its own and makes the empty
    /// share there.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(DIRECTORY);
        fs::create_dir(&path).map_err(failed(&path, "make directory"))?;
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(io::Error::from)
            .map_err(failed(&path, "new mount namespace"))?;
        let propagate =
            |target: &Path, flags| mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
        propagate(Path::new("/"), MsFlags::MS_SLAVE | MsFlags::MS_REC)
            .map_err(io::Error::from)
            .map_err(failed(&path, "make the host's mounts slaves"))?;
        // Mount points only: the limit keeps a guest from filling host memory.
        mount(
            Some("casemate"),
            &path,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0755,size=1m,nr_inodes=16k"),
        )
        .map_err(io::Error::from)
        .map_err(failed(&path, "mount tmpfs"))?;
        propagate(&path, MsFlags::MS_SHARED)
            .map_err(io::Error::from)
            .map_err(failed(&path, "let mounts propagate"))?;
        let root = File::open(&path).map_err(failed(&path, "open"))?.into();
        Ok(Self { path, root })
    }

    /// The share's directory, for the device process.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills a slot.
    ///
    /// # Errors
    /// ENOSPC when the share is full.
    pub fn put(&self, taken: &Taken) -> Result<(), Error> {
        let source = &taken.source;
        let place = self.path.join(&taken.slot);
        make_place(&place, taken.is_directory).map_err(failed(source, "make mount point"))?;
        let target = mount::open_in(
            self.root.as_fd(),
            Path::new(&taken.slot),
            Within::Beneath,
            libc::O_PATH | libc::O_NOFOLLOW,
            0,
        )
        .map_err(failed(source, "open mount point"))?;
        mount::attach(taken.tree.as_fd(), target.as_fd()).map_err(failed(source, "attach mount"))
    }

    /// Empties all slots of a container.
    ///
    /// Nothing is ever removed recursively here: should an unmount have failed,
    /// rmdir(2) and unlink(2) refuse a mount point, and the user's files behind
    /// it are safe.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub fn remove_container(&self, id: &str) -> Result<(), Error> {
        let base = self.path.join(id);
        let mut result = Ok(());
        for place in places(&base) {
            let unmounted = umount2(&place, MntFlags::MNT_DETACH).map_err(io::Error::from);
            let removed = unmounted.and_then(|()| remove_place(&place));
            if let Err(source) = removed {
                result = result.and(Err(Error {
                    path: place,
                    what: "unmount",
                    source,
                }));
            }
        }
        for directory in [base.join("mounts"), base] {
            match fs::remove_dir(&directory) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    result = result.and(Err(Error {
                        path: directory,
                        what: "remove",
                        source,
                    }));
                }
                _ => {}
            }
        }
        result
    }
}

impl Drop for Share {
    /// Takes everything down, so that the directory can be removed while this
    /// process still lives.
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            tracing::warn!(path = %self.path.display(), %error, "cannot unmount the share");
        }
    }
}

/// Names the place of a failure.
fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error {
        path: path.to_owned(),
        what,
        source,
    }
}

fn make_place(place: &Path, is_directory: bool) -> io::Result<()> {
    if is_directory {
        return fs::create_dir_all(place);
    }
    fs::create_dir_all(place.parent().expect("a slot has a parent"))?;
    File::create(place).map(drop)
}

fn remove_place(place: &Path) -> io::Result<()> {
    match fs::symlink_metadata(place)?.is_dir() {
        true => fs::remove_dir(place),
        false => fs::remove_file(place),
    }
}

/// The mount points of a container, by the layout of `protocol::paths`.
fn places(base: &Path) -> Vec<PathBuf> {
    let mut places: Vec<_> = fs::read_dir(base.join("mounts"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let rootfs = base.join("rootfs");
    if rootfs.exists() {
        places.push(rootfs);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_linux::process::{Birth, Exit, spawn};

    /// In a child: the share takes the process into a namespace of its own.
    #[test]
    fn emptying_a_slot_leaves_the_users_files_alone() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root to mount");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (sandbox, data) = (directory.path().join("box"), directory.path().join("data"));
        fs::create_dir(&sandbox).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join("file"), "precious").unwrap();
        let child = spawn(Birth::default(), || {
            let share = Share::open(&sandbox).unwrap();
            let entry = |source, slot, readonly| Entry {
                source,
                slot: Cow::Borrowed(slot),
                readonly,
                recursive: true,
                readonly_below: false,
                follows: false,
            };
            let add = |source, slot, readonly| {
                let taken = entry(source, slot, readonly).take().unwrap();
                share.put(&taken).unwrap();
            };
            add(&data, "web/rootfs", false);
            add(&data, "web/mounts/0", true);
            let file = data.join("file");
            add(&file, "web/mounts/1", false);
            let seen = fs::read_to_string(share.path().join("web/rootfs/file")).unwrap();
            assert_eq!(seen, "precious");
            let refused = fs::write(share.path().join("web/mounts/0/new"), "x").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
            // Mounted twice over: the second one must not expose the first.
            add(&data, "web/rootfs", false);
            assert!(share.remove_container("web").is_err());
            assert!(data.join("file").exists());
            share.remove_container("web").unwrap();
            drop(share);
            i32::from(fs::remove_dir(sandbox.join("share")).is_err())
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(0));
        assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "precious");
        assert_eq!(fs::read_dir(sandbox).unwrap().count(), 0);
    }

    /// As on most hosts: the user's mounts are shared, and one is below the volume.
    #[test]
    fn emptying_a_slot_leaves_the_users_mounts_alone() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root to mount");
            return;
        }
        const NONE: Option<&str> = None;
        let directory = tempfile::tempdir().unwrap();
        let (sandbox, data) = (directory.path().join("box"), directory.path().join("data"));
        fs::create_dir(&sandbox).unwrap();
        fs::create_dir(&data).unwrap();
        let child = spawn(Birth::default(), || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE).unwrap();
            let tmpfs = |at: &Path| mount(NONE, at, Some("tmpfs"), MsFlags::empty(), NONE);
            tmpfs(&data).unwrap();
            mount(NONE, &data, NONE, MsFlags::MS_SHARED, NONE).unwrap();
            for name in ["early", "late"] {
                fs::create_dir(data.join(name)).unwrap();
            }
            tmpfs(&data.join("early")).unwrap();
            fs::write(data.join("early/file"), "precious").unwrap();
            let host = casemate_linux::view::View::own().unwrap();
            let share = Share::open(&sandbox).unwrap();
            for (slot, follows) in [("web/mounts/0", false), ("web/mounts/1", true)] {
                let entry = Entry {
                    source: &data,
                    slot: slot.into(),
                    readonly: false,
                    recursive: true,
                    readonly_below: false,
                    follows,
                };
                let taken = host.within(|| entry.take()).unwrap().unwrap();
                share.put(&taken).unwrap();
            }
            let late = host.within(|| {
                tmpfs(&data.join("late")).unwrap();
                fs::write(data.join("late/file"), "")
            });
            late.unwrap().unwrap();
            let seen = |place: &str| share.path().join("web/mounts").join(place).exists();
            assert!(seen("0/early/file") && seen("1/early/file"));
            assert!(!seen("0/late/file") && seen("1/late/file"));
            share.remove_container("web").unwrap();
            let left =
                host.within(|| ["early/file", "late/file"].map(|file| data.join(file).exists()));
            assert_eq!(left.unwrap(), [true, true]);
            0
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(0));
    }
}
