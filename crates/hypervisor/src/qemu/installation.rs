//! Where a QEMU program lives and what of the host it needs to see.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use super::command_line::{Firmware, QBOOT};
use crate::jail::{Bind, BindKind};

/// A QEMU program with its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installation {
    /// The program, free of symbolic links.
    pub(super) program: PathBuf,
    /// The folder above its `bin`: `/usr`, or where it was unpacked.
    prefix: PathBuf,
}

/// Where the host's own programs and libraries are.
const SYSTEM: &str = "/usr";

impl Installation {
    /// # Errors
    /// NotFound, or InvalidInput when the program is in no folder named `bin`.
    pub(super) fn of(program: &Path) -> io::Result<Self> {
        let program = fs::canonicalize(program)?;
        let folder = program.parent().filter(|folder| folder.ends_with("bin"));
        let Some(prefix) = folder.and_then(Path::parent) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the program has to be in a folder named bin",
            ));
        };
        Ok(Self {
            prefix: prefix.to_owned(),
            program,
        })
    }

    /// What the program may load into a machine's ROMs.
    pub(super) fn firmware(&self) -> Firmware {
        let folders = self.existing(["share/qemu", "share/seabios", "share/qboot"]);
        Firmware {
            has_qboot: folders.iter().any(|folder| folder.join(QBOOT).exists()),
            folders,
        }
    }

    /// A program outside the system's folders may bring its own libraries; no
    /// other variable is set.
    pub(super) fn environment(&self) -> Vec<OsString> {
        let libraries = self.existing(["lib/x86_64-linux-gnu", "lib64", "lib"]);
        if self.prefix == Path::new(SYSTEM) || libraries.is_empty() {
            return Vec::new();
        }
        let mut variable = OsString::from("LD_LIBRARY_PATH=");
        for (n, folder) in libraries.iter().enumerate() {
            variable.push(if n == 0 { "" } else { ":" });
            variable.push(folder);
        }
        vec![variable]
    }

    /// Programs, libraries and firmware, each shown at its own place.
    pub(super) fn binds(&self) -> Vec<Bind> {
        let mut binds = Vec::new();
        let mut show = |path: &Path, kind| {
            if path.exists() {
                binds.push(Bind {
                    source: path.to_owned(),
                    target: path.to_owned(),
                    kind,
                });
            }
        };
        show(Path::new(SYSTEM), BindKind::Programs);
        // Links into /usr on merged systems; the loader is found through them.
        show(Path::new("/lib"), BindKind::Programs);
        show(Path::new("/lib64"), BindKind::Programs);
        show(Path::new("/etc/ld.so.cache"), BindKind::Data);
        if !self.prefix.starts_with(SYSTEM) {
            show(&self.prefix, BindKind::Programs);
        }
        binds
    }

    fn existing<const N: usize>(&self, folders: [&str; N]) -> Vec<PathBuf> {
        let folders = folders.map(|folder| self.prefix.join(folder));
        folders.into_iter().filter(|path| path.is_dir()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_elsewhere_brings_its_own_tree() {
        let directory = tempfile::tempdir().unwrap();
        let prefix = fs::canonicalize(directory.path()).unwrap();
        for folder in ["bin", "lib", "share/qemu"] {
            fs::create_dir_all(prefix.join(folder)).unwrap();
        }
        fs::write(prefix.join("bin/qemu"), "").unwrap();
        std::os::unix::fs::symlink(prefix.join("bin/qemu"), prefix.join("link")).unwrap();
        let installation = Installation::of(&prefix.join("link")).unwrap();
        assert_eq!(installation.program, prefix.join("bin/qemu"));
        let firmware = installation.firmware();
        assert_eq!(firmware.folders, [prefix.join("share/qemu")]);
        assert!(!firmware.has_qboot);
        fs::write(prefix.join("share/qemu/qboot.rom"), "").unwrap();
        assert!(installation.firmware().has_qboot);
        let variable = format!("LD_LIBRARY_PATH={}/lib", prefix.display());
        assert_eq!(installation.environment(), [OsString::from(variable)]);
        assert!(
            installation
                .binds()
                .iter()
                .any(|bind| bind.target == prefix)
        );
    }

    #[test]
    fn the_system_has_no_variables() {
        let installation = Installation::of(Path::new("/usr/bin/env")).unwrap();
        assert_eq!(installation.environment(), Vec::<OsString>::new());
        let shown = installation.binds();
        assert!(shown.iter().all(|bind| bind.kind != BindKind::Device));
    }

    #[test]
    fn a_program_outside_bin_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Installation::of(file.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = Installation::of(Path::new("/no/bin/qemu")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
