//! Places inside the checkout.

use std::path::{Path, PathBuf};

/// The root of the checkout this task was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies one level below the root")
}

/// Where finished artifacts of one kind (`guest`, `images`) are put.
pub(crate) fn build(kind: &str) -> PathBuf {
    root().join("build").join(kind)
}
