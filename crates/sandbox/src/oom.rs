//! Telling a client that its container ran out of memory.
//!
//! Podman and CRI-O learn of it from conmon, which watches the cgroup of the
//! host and leaves an empty file `oom` in the bundle. A guest that runs out of
//! memory does not disturb that cgroup, so the file is left here in conmon's
//! stead, before the process that conmon reaps ends.

use std::{collections::BTreeMap, fs::File, io, path::Path};

/// Names the client (libpod and CRI-O set it on every container).
const MANAGER: &str = "io.container.manager";

/// What conmon calls it.
const FILE: &str = "oom";

/// Leaves the file for clients that look for it.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn tell_client(bundle: &Path, annotations: &BTreeMap<String, String>) -> io::Result<()> {
    match annotations.get(MANAGER).map(String::as_str) {
        Some("libpod" | "cri-o") => File::create(bundle.join(FILE)).map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_looks_for_the_file_gets_it() {
        let bundle = tempfile::tempdir().unwrap();
        let of = |manager: &str| BTreeMap::from([(MANAGER.to_owned(), manager.to_owned())]);
        tell_client(bundle.path(), &BTreeMap::new()).unwrap();
        tell_client(bundle.path(), &of("other")).unwrap();
        assert!(!bundle.path().join(FILE).exists());
        tell_client(bundle.path(), &of("libpod")).unwrap();
        assert!(bundle.path().join(FILE).exists());
    }
}
