//! Whether a file can be a guest kernel, seen before a machine is built.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use crate::Error;

/// Offset of "HdrS" in a bzImage (Linux, Documentation/x86/boot.rst).
const BZIMAGE_MAGIC: usize = 0x202;

/// # Errors
/// When the file cannot be read or is no kernel image.
pub(crate) fn check_kernel(path: &Path) -> Result<(), Error> {
    let mut start = Vec::new();
    open("guest kernel", path)?
        .take(BZIMAGE_MAGIC as u64 + 4)
        .read_to_end(&mut start)
        .map_err(|source| unusable("guest kernel", path, source))?;
    let is_elf = start.starts_with(b"\x7fELF\x02\x01");
    let is_bzimage = start.get(BZIMAGE_MAGIC..) == Some(b"HdrS");
    if is_elf || is_bzimage {
        return Ok(());
    }
    Err(Error::Kernel {
        path: path.to_owned(),
        problem: "not a 64-bit x86 kernel image (vmlinux or bzImage)",
    })
}

/// # Errors
/// When the file cannot be read.
pub(crate) fn check_initrd(path: &Path) -> Result<(), Error> {
    open("initial RAM file system", path).map(drop)
}

fn open(what: &'static str, path: &Path) -> Result<File, Error> {
    let file = File::open(path).map_err(|source| unusable(what, path, source))?;
    let metadata = file
        .metadata()
        .map_err(|source| unusable(what, path, source))?;
    let problem = if !metadata.is_file() {
        "not a regular file"
    } else if metadata.mode() & 0o004 == 0 {
        "not readable by everyone, as the unprivileged virtual machine monitor needs it (chmod a+r)"
    } else {
        return Ok(file);
    };
    Err(unusable(what, path, io::Error::other(problem)))
}

fn unusable(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn what_is_no_kernel_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinux");
        let problem = |path: &Path| check_kernel(path).unwrap_err().to_string();
        assert!(problem(&path).ends_with("/vmlinux: No such file or directory (os error 2)"));
        assert!(problem(directory.path()).ends_with(": not a regular file"));
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(problem(&path).contains("not a 64-bit x86 kernel image"));
        fs::write(&path, b"\x7fELF\x02\x01\x01").unwrap();
        check_kernel(&path).unwrap();
        let mut image = vec![0; 0x400];
        image[BZIMAGE_MAGIC..][..4].copy_from_slice(b"HdrS");
        fs::write(&path, &image).unwrap();
        check_kernel(&path).unwrap();
        assert!(check_initrd(&directory.path().join("x")).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(problem(&path).ends_with("(chmod a+r)"));
    }
}
