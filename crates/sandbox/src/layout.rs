//! Where things are under a state root:
//!
//! ```text
//! <root>/<container>/         state.json, ledger
//!                   sandbox ─► ../.sandbox-<number>
//! <root>/.sandbox-<number>/   lock, ledger, sockets, share, logs: one monitor
//! ```
//!
//! A container's directory goes when it is deleted, the sandbox's with the last
//! of its containers. The number is never used twice, so the link of a
//! container whose sandbox has gone leads nowhere, and to no other sandbox.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, symlink},
    path::{Path, PathBuf},
};

/// Name of the link in a container's directory.
const LINK: &str = "sandbox";

/// What the name of a sandbox's directory begins with.
const PREFIX: &str = ".sandbox-";

/// How many digits of a random number are in the name.
const NUMBER_DIGITS: usize = 16;

/// The directory of the sandbox to which the container in `container` belongs,
/// whether it is still there or not; none for a container without a sandbox.
pub fn sandbox_of(container: &Path) -> Option<PathBuf> {
    let target = fs::read_link(container.join(LINK)).ok()?;
    let name = target.file_name()?;
    let ours = name.to_string_lossy().starts_with(PREFIX);
    ours.then(|| container.with_file_name(name))
}

/// Makes the directory of a new sandbox for the container in `container`, and
/// says which it is.
///
/// # Errors
/// A full disk.
pub fn make_sandbox(container: &Path) -> io::Result<PathBuf> {
    let number = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    // A path of a socket in it has to fit into 107 bytes.
    let digits = number.chars().filter(char::is_ascii_hexdigit);
    let number: String = digits.take(NUMBER_DIGITS).collect();
    let sandbox = container.with_file_name(format!("{PREFIX}{number}"));
    // Who finds the container can clean up from now on.
    join_sandbox(container, &sandbox)?;
    // Sockets and logs in it are for root alone.
    DirBuilder::new().mode(0o700).create(&sandbox)?;
    Ok(sandbox)
}

/// Makes the container in `container` belong to a sandbox under the same root.
///
/// # Errors
/// When it belongs to one already.
pub fn join_sandbox(container: &Path, sandbox: &Path) -> io::Result<()> {
    let name = sandbox.file_name().expect("a sandbox is under its root");
    symlink(Path::new("..").join(name), container.join(LINK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_knows_its_sandbox() {
        let root = tempfile::tempdir().unwrap();
        let [first, member] = ["first", "member"].map(|name| root.path().join(name));
        for container in [&first, &member] {
            fs::create_dir(container).unwrap();
            assert_eq!(sandbox_of(container), None);
        }
        let sandbox = make_sandbox(&first).unwrap();
        join_sandbox(&member, &sandbox).unwrap();
        assert!(sandbox.is_dir());
        assert_eq!(sandbox_of(&first).unwrap(), sandbox);
        assert_eq!(sandbox_of(&member).unwrap(), sandbox);
        assert!(first.join(LINK).is_dir());
        assert!(join_sandbox(&member, &first).is_err());
        assert!(make_sandbox(&member).is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 3);
        fs::remove_dir(&sandbox).unwrap();
        assert_eq!(sandbox_of(&member).unwrap(), sandbox);
    }
}
