//! Results that take long to build, kept by digest outside the checkout.
//!
//! An entry is a folder `<cache>/<kind>/<digest>`. It is filled under another name and renamed
//! when complete, so that a folder of that name is always whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

/// How the names of entries end that are being filled.
const UNFINISHED: &str = ".unfinished";

/// The cache's root: `CASEMATE_CACHE`, or a folder of the system.
pub(crate) fn root() -> PathBuf {
    std::env::var_os("CASEMATE_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/casemate"), PathBuf::from)
}

/// Everything that goes into a result, reduced to its name in the cache.
#[derive(Default)]
pub(crate) struct Ingredients(Sha256);

impl Ingredients {
    /// Adds one named ingredient. Lengths are part of it, so that no two lists look alike.
    pub(crate) fn add(&mut self, name: &str, content: impl AsRef<[u8]>) {
        let content = content.as_ref();
        self.0.update(format!("{name} {}\n", content.len()));
        self.0.update(content);
    }

    /// The digest, shortened to what a folder name can bear.
    pub(crate) fn digest(self) -> String {
        hex(&self.0.finalize())[..32].to_string()
    }
}

/// The SHA-256 of `content` in hexadecimal.
pub(crate) fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the cache's folder for `digest`, filled by `fill` if it is not there yet.
///
/// A lock on the kind lets two tasks that want the same thing build it once.
pub(crate) fn obtain(
    kind: &str,
    digest: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = root().join(kind);
    let entry = folder.join(digest);
    if entry.is_dir() {
        return Ok(entry);
    }
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the cache {}", folder.display()))?;
    let _lock = lock(&folder.join("lock"))?;
    if entry.is_dir() {
        return Ok(entry);
    }
    let unfinished = folder.join(format!("{digest}{UNFINISHED}"));
    clear_unfinished(&folder)?;
    fs::create_dir(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
    fill(&unfinished)?;
    fs::rename(&unfinished, &entry)
        .with_context(|| format!("cannot publish {}", entry.display()))?;
    Ok(entry)
}

/// Removes what tasks have left that were ended in the middle. The caller holds the lock.
fn clear_unfinished(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(UNFINISHED) {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot clear {}", path.display()))?;
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("cannot lock {}", path.display()))
}

/// Puts a copy of `from` at `to` at one stroke: who has the old file open keeps it.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let name = to.file_name().context("a file has a name")?;
    let fresh = folder.join(format!(".{}.fresh", name.to_string_lossy()));
    fs::copy(from, &fresh)
        .with_context(|| format!("cannot copy {} to {}", from.display(), fresh.display()))?;
    fs::rename(&fresh, to).with_context(|| format!("cannot replace {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(ingredients: &[(&str, &str)]) -> String {
        let mut all = Ingredients::default();
        for (name, content) in ingredients {
            all.add(name, content);
        }
        all.digest()
    }

    #[test]
    fn every_ingredient_counts() {
        let base = digest(&[("a", "1"), ("b", "2")]);
        assert_eq!(base, digest(&[("a", "1"), ("b", "2")]));
        assert_ne!(base, digest(&[("a", "1"), ("b", "3")]));
        assert_ne!(base, digest(&[("a", "1b 1\n2")]));
        assert_eq!(base.len(), 32);
    }

    #[test]
    fn install_replaces_and_does_not_overwrite() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("deep/to"));
        fs::write(&from, "old").unwrap();
        install(&from, &to).unwrap();
        let held = File::open(&to).unwrap();
        fs::write(&from, "newer").unwrap();
        install(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"newer");
        assert_eq!(held.metadata().unwrap().len(), 3);
    }
}
