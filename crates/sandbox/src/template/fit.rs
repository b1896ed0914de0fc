//! What a template fits: everything that a machine begins with, as text, and the
//! key that stands for it.
//!
//! Kernel and initrd are in it by the identities of their files and not by their
//! contents: to digest 25 MB would take longer than the clone does, and a file
//! with the same contents that is another one costs no more than one cold start.
//! The contents' digests are in the [header](super::Header), for people.
//!
//! So is the host's boot: what a guest has learned of the processor and its
//! counter holds until the host starts anew, perhaps with another one.
//!
//! The [`Ground`] is the part of it that can be looked at again without knowing
//! for which machine the template was made: when it has changed, no machine can
//! begin from the template any more.

use std::{
    fmt,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use casemate_config::Guest;
use casemate_protocol::VERSIONS;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a template's files mean, and how they are laid out.
pub(super) const FORMAT: u32 = 2;

/// Digits of a key. Who finds a template compares the whole text as well.
const DIGITS: usize = 16;

/// The name of a template: the beginning of a SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Key(String);

/// Not a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the key of a template: 16 hexadecimal digits, as `casemate template list` shows them"
)]
pub struct BadKey(String);

impl Key {
    /// Of the template that fits what `text` says.
    pub(super) fn of(text: &str) -> Self {
        Self(hex(&Sha256::digest(text))[..DIGITS].to_owned())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_key = text.len() == DIGITS && text.bytes().all(digit);
        let bad = || BadKey(text.chars().take(64).collect());
        is_key.then(|| Self(text.to_owned())).ok_or_else(bad)
    }
}

impl TryFrom<String> for Key {
    type Error = BadKey;

    fn try_from(text: String) -> Result<Self, BadKey> {
        text.parse()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a template stands on, beside its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ground {
    /// Release of the program.
    pub casemate: String,
    /// First and last version of the agent's protocol that it speaks.
    pub protocol: (u32, u32),
    /// Which boot of the host.
    pub boot: String,
    /// The guest's kernel.
    pub kernel: Source,
    /// Its initrd.
    pub initrd: Source,
}

/// A file that a guest has begun from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// Which file that is.
    pub file: Identity,
}

impl Source {
    fn at(path: &Path) -> Result<Self, Error> {
        let file = fs::metadata(path).map_err(failed(path))?;
        Ok(Self {
            path: path.to_owned(),
            file: Identity::from(&file),
        })
    }
}

impl Ground {
    /// That of a machine with this kernel and initrd that begins now.
    ///
    /// # Errors
    /// When one of the files cannot be looked at.
    pub fn now(kernel: &Path, initrd: &Path) -> Result<Self, Error> {
        let boot_path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(boot_path).map_err(failed(boot_path))?;
        Ok(Self {
            casemate: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: (*VERSIONS.start(), *VERSIONS.end()),
            boot: boot.trim().to_owned(),
            kernel: Source::at(kernel)?,
            initrd: Source::at(initrd)?,
        })
    }

    /// Whether it is as it was.
    pub fn holds(&self) -> bool {
        let now = Self::now(&self.kernel.path, &self.initrd.path);
        now.is_ok_and(|now| now == *self)
    }
}

/// What a machine begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    ground: Ground,
    text: String,
    key: Key,
}

impl Fit {
    /// Of a machine with this recipe and these files, on this host as it is now.
    ///
    /// # Errors
    /// When one of the files cannot be looked at.
    pub fn of(recipe: &str, guest: &Guest) -> Result<Self, Error> {
        let ground = Ground::now(&guest.kernel, &guest.initrd)?;
        Ok(Self::new(ground, recipe))
    }

    pub(super) fn new(ground: Ground, recipe: &str) -> Self {
        let source = |source: &Source| format!("{} {}", source.file, source.path.display());
        let text = format!(
            "template {FORMAT}\ncasemate {casemate}\nagent protocol {first} to {last}\n\
             host boot {boot}\nkernel {kernel}\ninitrd {initrd}\n{recipe}",
            casemate = ground.casemate,
            first = ground.protocol.0,
            last = ground.protocol.1,
            boot = ground.boot,
            kernel = source(&ground.kernel),
            initrd = source(&ground.initrd),
        );
        Self {
            key: Key::of(&text),
            ground,
            text,
        }
    }

    /// What it stands on.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The name of the template that fits.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// All of it, a line each.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A file that cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error { path, source }
}

/// A file as it is now: whoever writes to it or puts another in its place makes
/// it another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// In bytes.
    pub size: u64,
    modified_s: i64,
    modified_ns: i64,
    changed_s: i64,
    changed_ns: i64,
}

impl From<&Metadata> for Identity {
    fn from(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified_s: file.mtime(),
            modified_ns: file.mtime_nsec(),
            changed_s: file.ctime(),
            changed_ns: file.ctime_nsec(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "device {} inode {} size {} modified {}.{:09} changed {}.{:09}",
            self.device,
            self.inode,
            self.size,
            self.modified_s,
            self.modified_ns,
            self.changed_s,
            self.changed_ns
        )
    }
}

/// Bytes as lower-case digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
impl Ground {
    /// One that holds.
    pub(in crate::template) fn fake() -> Self {
        let ourselves = Path::new("/proc/self/exe");
        Self::now(ourselves, ourselves).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(folder: &Path) -> Guest {
        let [kernel, initrd] = ["kernel", "initrd"].map(|name| folder.join(name));
        fs::write(&kernel, "kernel").unwrap();
        fs::write(&initrd, "initrd").unwrap();
        Guest {
            kernel,
            initrd,
            ..Guest::default()
        }
    }

    #[test]
    fn the_ground_holds_until_a_file_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let guest = guest(folder.path());
        let ground = Ground::now(&guest.kernel, &guest.initrd).unwrap();
        assert!(ground.holds());
        let other_boot = Ground {
            boot: "of last week".to_owned(),
            ..ground.clone()
        };
        assert!(!other_boot.holds());
        fs::write(&guest.kernel, "newer").unwrap();
        assert!(!ground.holds());
        fs::remove_file(&guest.kernel).unwrap();
        assert!(!ground.holds());
    }

    #[test]
    fn whatever_a_machine_begins_with_is_in_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let guest = guest(folder.path());
        let key = |recipe: &str| Fit::of(recipe, &guest).unwrap().key().clone();
        let first = key("q35");
        assert_eq!(key("q35"), first);
        assert_ne!(key("q35,smm=off"), first);
        // The same contents in another file.
        fs::write(folder.path().join("new"), "kernel").unwrap();
        fs::rename(folder.path().join("new"), &guest.kernel).unwrap();
        assert_ne!(key("q35"), first);
        fs::remove_file(&guest.initrd).unwrap();
        let error = Fit::of("q35", &guest).unwrap_err().to_string();
        assert!(
            error.ends_with("initrd: No such file or directory (os error 2)"),
            "{error}"
        );
    }

    #[test]
    fn a_key_is_not_a_path() {
        let key = Key::of("text");
        assert_eq!(key.as_str().parse(), Ok(key.clone()));
        for text in [
            "",
            "..",
            "0123456789abcde",
            "0123456789abcdeg",
            "0123456789ABCDEF",
            "0123456789abcde/",
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }
}
