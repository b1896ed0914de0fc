//! "tmpcopyup": a new tmpfs starts with a copy of the directory it covers.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat, mknodat},
    unistd::{Gid, Uid, fchownat, symlinkat},
};

/// Copies what is in `from` (an O_PATH descriptor below a mount) into `to`:
/// contents, owners and modes, with `own` also those of the directory itself.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, own: bool) -> io::Result<()> {
    let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let to = openat(to, ".", directory, Mode::empty())?;
    if own {
        copy_own(&fstat(from)?, &to)?;
    }
    copy_entries(from, to.as_fd())
}

fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut list = Dir::openat(from, ".", directory, Mode::empty())?;
    for entry in list.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    let mode = Mode::from_bits_truncate(stat.st_mode);
    if kind == SFlag::S_IFDIR {
        mkdirat(to, name, mode)?;
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let below = openat(from, name, directory, Mode::empty())?;
        let copied = openat(to, name, directory, Mode::empty())?;
        copy_entries(below.as_fd(), copied.as_fd())?;
        copy_own(&stat, &copied)
    } else if kind == SFlag::S_IFREG {
        let source = openat(
            from,
            name,
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let copied = openat(to, name, flags, mode)?;
        io::copy(
            &mut File::from(source),
            &mut File::from(copied.try_clone()?),
        )?;
        copy_own(&stat, &copied)
    } else {
        if kind == SFlag::S_IFLNK {
            symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
        } else {
            mknodat(to, name, kind, mode, stat.st_rdev)?;
        }
        let (uid, gid) = owner(&stat);
        Ok(fchownat(to, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }
}

/// Owner first: changing it takes set-user-id bits away.
fn copy_own(stat: &FileStat, to: &OwnedFd) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    nix::unistd::fchown(to, uid, gid)?;
    Ok(fchmod(to, Mode::from_bits_truncate(stat.st_mode))?)
}

fn owner(stat: &FileStat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn a_tree_is_copied_with_its_modes() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        fs::write(from.path().join("a/b/file"), "content").unwrap();
        symlink("b/file", from.path().join("a/link")).unwrap();
        nix::unistd::mkfifo(&from.path().join("fifo"), Mode::S_IRUSR).unwrap();
        for (path, mode) in [("a/b/file", 0o640), ("a", 0o1777), ("", 0o711)] {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(from.path().join(path), mode).unwrap();
        }
        let open = |path| File::open(path).unwrap();
        copy(open(from.path()).as_fd(), open(to.path()).as_fd(), true).unwrap();
        let mode = |path: &str| fs::symlink_metadata(to.path().join(path)).unwrap().mode();
        assert_eq!(fs::read(to.path().join("a/link")).unwrap(), b"content");
        assert_eq!(mode("a/b/file"), 0o100640);
        assert_eq!(mode("a"), 0o41777);
        assert_eq!(mode("") & 0o7777, 0o711);
        assert_eq!(mode("fifo") & 0o170000, 0o010000);
        assert_eq!(
            fs::read_link(to.path().join("a/link")).unwrap().to_str(),
            Some("b/file")
        );
    }
}
