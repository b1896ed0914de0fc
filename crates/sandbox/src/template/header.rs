//! What a template says of itself: JSON, and behind it the digest of that.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::fit::{FORMAT, Ground, Identity, Key, hex};

/// More than any header has.
pub(super) const MAX_BYTES: u64 = 256 << 10;

/// The header of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// How the template's files are laid out.
    pub version: u32,
    /// Its name.
    pub key: Key,
    /// What it fits; the key is the digest of this.
    pub fits: String,
    /// What that stands on.
    pub ground: Ground,
    /// Virtual processors of its machine.
    pub vcpus: u32,
    /// Memory of its machine.
    pub memory_mib: u32,
    /// Seconds since 1970.
    pub created_s: u64,
    /// From the start of its machine to the last byte.
    pub took_ms: u64,
    /// Of that, until a clone had come up.
    pub trial_ms: u64,
    /// The program that made it.
    pub made_by: String,
    /// State of the machine's devices.
    pub state: Part,
    /// The guest's memory.
    pub memory: Part,
    /// Contents of the kernel it runs, SHA-256.
    pub kernel_sha256: String,
    /// Contents of the initrd it has unpacked.
    pub initrd_sha256: String,
}

/// A file of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Part {
    /// The file as it was when the template was made.
    pub file: Identity,
    /// Bytes that are not holes.
    pub bytes: u64,
    /// Their digest.
    pub sha256: String,
}

/// Why a header is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// Cut off, written over, or nothing of ours.
    #[error("its header is damaged")]
    Damaged,
    /// Of another release.
    #[error("its header has version {0}, and this casemate knows {FORMAT}")]
    Version(u64),
    /// It is not under its own name.
    #[error("it is one that fits another machine")]
    Other,
}

impl Header {
    /// As it is written.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("texts and numbers");
        let digest = hex(&Sha256::digest(&bytes));
        bytes.extend(format!("\n{digest}\n").as_bytes());
        bytes
    }

    /// Reads the header of the template that is called `key`.
    ///
    /// # Errors
    /// When it is not one.
    pub(super) fn from_bytes(bytes: &[u8], key: &Key) -> Result<Self, Bad> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Bad::Damaged)?;
        let whole = text.strip_suffix('\n').ok_or(Bad::Damaged)?;
        let (json, digest) = whole.rsplit_once('\n').ok_or(Bad::Damaged)?;
        if hex(&Sha256::digest(json)) != digest {
            return Err(Bad::Damaged);
        }
        let Version { version } = serde_json::from_str(json).map_err(|_| Bad::Damaged)?;
        if version != u64::from(FORMAT) {
            return Err(Bad::Version(version));
        }
        let header: Self = serde_json::from_str(json).map_err(|_| Bad::Damaged)?;
        if header.key != *key || Key::of(&header.fits) != *key {
            return Err(Bad::Other);
        }
        Ok(header)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::template::fit::Fit;

    fn fit(recipe: &str) -> Fit {
        Fit::new(Ground::fake(), recipe)
    }

    pub(in crate::template) fn header(fit: &Fit) -> Header {
        let file = std::fs::metadata("/proc/self/exe").unwrap();
        let part = Part {
            file: Identity::from(&file),
            bytes: 5,
            sha256: String::new(),
        };
        Header {
            version: FORMAT,
            key: fit.key().clone(),
            fits: fit.text().to_owned(),
            ground: fit.ground().clone(),
            vcpus: 1,
            memory_mib: 256,
            created_s: 1,
            took_ms: 2,
            trial_ms: 1,
            made_by: "casemate".to_owned(),
            state: part.clone(),
            memory: part,
            kernel_sha256: String::new(),
            initrd_sha256: String::new(),
        }
    }

    /// With a digest that is right.
    fn sealed(json: &str) -> Vec<u8> {
        format!("{json}\n{}\n", hex(&Sha256::digest(json))).into_bytes()
    }

    #[test]
    fn only_a_whole_header_of_this_version_is_one() {
        let fit = fit("machine");
        let header = header(&fit);
        let bytes = header.to_bytes();
        assert_eq!(Header::from_bytes(&bytes, fit.key()), Ok(header.clone()));
        for end in 0..bytes.len() {
            let cut = Header::from_bytes(&bytes[..end], fit.key());
            assert_eq!(cut, Err(Bad::Damaged), "{end}");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(Header::from_bytes(&bytes, fit.key()).is_err(), "{at}");
        }
        let other = Fit::new(Ground::fake(), "another");
        let found = Header::from_bytes(&bytes, other.key());
        assert_eq!(found, Err(Bad::Other));
        let lies = Header {
            fits: "another".to_owned(),
            ..header
        };
        let found = Header::from_bytes(&lies.to_bytes(), fit.key());
        assert_eq!(found, Err(Bad::Other));
    }

    #[test]
    fn one_of_another_version_is_named_as_such() {
        let key = fit("machine").key().clone();
        let newer = sealed(r#"{"version": 7, "colour": "red"}"#);
        assert_eq!(Header::from_bytes(&newer, &key), Err(Bad::Version(7)));
        let none = sealed("{}");
        assert_eq!(Header::from_bytes(&none, &key), Err(Bad::Damaged));
        assert_eq!(
            Bad::Version(7).to_string(),
            "its header has version 7, and this casemate knows 2"
        );
    }
}
