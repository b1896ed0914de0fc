//! The cgroups of this machine, in whichever hierarchies it has.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the hierarchies are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Every cgroup folder for which `wanted` is true, deepest first.
pub fn find(wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(Path::new(ROOT), &wanted, &mut found);
    found.reverse();
    found
}

fn collect(folder: &Path, wanted: &impl Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            if wanted(&path) {
                found.push(path.clone());
            }
            collect(&path, wanted, found);
        }
    }
}

/// Every cgroup folder below one whose name is `parent`, deepest first, and
/// that one itself.
pub fn below(parent: &str) -> Vec<PathBuf> {
    find(|path| path.components().any(|part| part.as_os_str() == parent))
}

/// Removes the cgroups of `parent` that hold no process.
pub fn remove(parent: &str) {
    for folder in below(parent) {
        // One that is still in use shows up as a leak; here there is no use in
        // an error.
        let _ = fs::remove_dir(folder);
    }
}

/// Makes a cgroup in one of the hierarchies.
pub fn create(path: &str) -> std::io::Result<PathBuf> {
    let root = Path::new(ROOT);
    let v1 = root.join("pids");
    let folder = if v1.is_dir() { v1 } else { root.to_owned() }.join(path);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
