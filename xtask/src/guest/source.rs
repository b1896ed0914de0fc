//! Where Linux comes from: the distribution's source package, or an archive of the caller's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// The folder where Debian's `linux-source-*` packages put their archives.
const PACKAGES: &str = "/usr/src";

/// An archive of the Linux source and the words that identify what is in it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) archive: PathBuf,
    /// Package name and version, or the digest of an archive that is from no package.
    pub(crate) identity: String,
}

impl Source {
    /// The archive the caller names, else that of the newest installed `linux-source` package.
    pub(crate) fn find(archive: Option<&Path>) -> Result<Self> {
        match archive {
            Some(archive) => Self::of_archive(archive),
            None => Self::of_package(),
        }
    }

    fn of_archive(archive: &Path) -> Result<Self> {
        let sum = command::output(Command::new("sha256sum").arg(archive))?;
        let digest = sum.split_whitespace().next().unwrap_or_default();
        Ok(Self {
            archive: archive.to_path_buf(),
            identity: format!("sha256 {digest}"),
        })
    }

    fn of_package() -> Result<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(PACKAGES).with_context(|| PACKAGES.to_string())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(version) = version(&name) {
                found.push((version, name));
            }
        }
        let Some((_, name)) = found.into_iter().max() else {
            bail!("no Linux source in {PACKAGES}\nhint: apt-get install linux-source");
        };
        let package = name.trim_end_matches(".tar.xz");
        let version = command::output(Command::new("dpkg-query").args([
            "--show",
            "--showformat=${Version}",
            package,
        ]))?;
        Ok(Self {
            archive: Path::new(PACKAGES).join(&name),
            identity: format!("{package} {version}"),
        })
    }
}

/// The version in `linux-source-6.12.tar.xz`, so that 6.12 sorts above 6.1 and 6.9.
fn version(name: &str) -> Option<Vec<u32>> {
    let numbers = name
        .strip_prefix("linux-source-")?
        .strip_suffix(".tar.xz")?;
    numbers.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_numbers() {
        let mut names = [
            "linux-source-6.9.tar.xz",
            "linux-source-6.12.tar.xz",
            "linux-source-6.1.tar.xz",
        ];
        names.sort_by_key(|name| version(name));
        assert_eq!(names[2], "linux-source-6.12.tar.xz");
    }

    #[test]
    fn other_files_are_not_sources() {
        assert_eq!(version("linux-source-6.1"), None);
        assert_eq!(version("linux-source-6.1-rt.tar.xz"), None);
        assert_eq!(version("linux-patch-6.1-rt.patch.xz"), None);
    }
}
