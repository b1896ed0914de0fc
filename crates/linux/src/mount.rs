//! Mounts by descriptor: open_tree(2), move_mount(2), mount_setattr(2), and
//! path resolution that stays inside a root (openat2(2)).

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::mount::MsFlags;

use crate::{c_string, check};

/// MOUNT_ATTR_* of mount_setattr(2).
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    /// Set-user-id bits have no effect.
    pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
}

/// A detached copy of the mount at `path`, with what is mounted below it when
/// `recursive`; it vanishes with the descriptor unless it is attached.
///
/// # Errors
/// ENOENT, EPERM.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_string(path.as_os_str().as_bytes())?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: the path is a valid C string for the call.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A new tmpfs that is mounted nowhere yet; it vanishes with the descriptor
/// unless it is attached. `options` are its mount options with their values.
///
/// # Errors
/// EINVAL for an option it does not have, EPERM.
pub fn tmpfs(options: &[(&str, &str)], attributes: u64) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSCONFIG_SET_STRING: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const FSMOUNT_CLOEXEC: u32 = 1;
    // SAFETY: the name is a valid C string for the call.
    let context =
        check(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    let context = unsafe { OwnedFd::from_raw_fd(context as RawFd) };
    let configure = |command: u32, key: *const libc::c_char, value: *const libc::c_char| {
        // SAFETY: key and value are null or valid C strings for the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command,
                key,
                value,
                0,
            )
        })
    };
    for (key, value) in options {
        let (key, value) = (c_string(key.as_bytes())?, c_string(value.as_bytes())?);
        configure(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?;
    }
    configure(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
    // SAFETY: takes integers only.
    let mount = check(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            attributes,
        )
    })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(mount as RawFd) })
}

/// Attaches a detached mount at the place that `target` refers to.
///
/// # Errors
/// EINVAL when the place cannot carry it (a file for a directory).
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are the empty C string.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    })?;
    Ok(())
}

/// Changes attributes ([`attr`]) of a mount, and of all below it when
/// `recursive`. `propagation` is one of MS_SHARED … or empty to leave it.
///
/// # Errors
/// EINVAL for attributes that exclude each other.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: MsFlags,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: propagation.bits(),
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is the empty C string, attributes is valid for its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// How [`open_in`] treats what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// The directory is the root for `..` and absolute symbolic links.
    Root,
    /// Leaving the directory is an error (EXDEV).
    Beneath,
}

/// Opens `path` relative to `directory` without ever leaving it, whatever
/// symbolic links it holds (openat2(2), RESOLVE_IN_ROOT or RESOLVE_BENEATH;
/// magic links are refused).
///
/// # Errors
/// ENOENT, ELOOP for a magic link, EXDEV for a way out.
pub fn open_in(
    directory: BorrowedFd<'_>,
    path: &Path,
    within: Within,
    flags: i32,
    mode: u32,
) -> io::Result<OwnedFd> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: open_how is plain data; zero is a valid value of every field.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = libc::RESOLVE_NO_MAGICLINKS
        | match within {
            Within::Root => libc::RESOLVE_IN_ROOT,
            Within::Beneath => libc::RESOLVE_BENEATH,
        };
    // SAFETY: the path is a valid C string, how is valid for its size.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            directory.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use super::*;

    #[test]
    fn a_tmpfs_has_its_options_and_files() {
        let Ok(mount) = tmpfs(&[("size", "8192"), ("mode", "0700")], attr::NOEXEC) else {
            assert!(!nix::unistd::geteuid().is_root());
            return;
        };
        let flags = libc::O_CREAT | libc::O_RDWR;
        let file = open_in(mount.as_fd(), Path::new("f"), Within::Beneath, flags, 0o600);
        let file = fs::File::from(file.unwrap());
        io::Write::write_all(&mut &file, &[1; 8192]).unwrap();
        let full = io::Write::write(&mut &file, b"1").unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        let unknown = tmpfs(&[("no-such", "1")], 0).unwrap_err();
        assert_eq!(unknown.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/name"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc/name", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("../../../etc/name", root.path().join("up")).unwrap();
        let directory = fs::File::open(root.path()).unwrap();
        for link in ["link", "up"] {
            let fd = open_in(
                directory.as_fd(),
                Path::new(link),
                Within::Root,
                libc::O_RDONLY,
                0,
            )
            .unwrap();
            assert_eq!(io::read_to_string(fs::File::from(fd)).unwrap(), "inside");
            let error = open_in(
                directory.as_fd(),
                Path::new(link),
                Within::Beneath,
                libc::O_RDONLY,
                0,
            )
            .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
        }
    }
}
