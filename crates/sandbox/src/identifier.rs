//! Ids of sandboxes, containers and execs. They become file names and cgroup
//! names, so what they may hold is decided here, once.

use std::fmt;

/// An id that is safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(String);

/// An id that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid id {0:?}: 1 to {max} letters, digits, '_', '+', '-' or '.' are allowed", max = casemate_protocol::MAX_ID)]
pub struct InvalidId(String);

impl Id {
    /// Checks an id; the alphabet is runc's.
    ///
    /// # Errors
    /// [`InvalidId`] for an empty or too long id, other characters, "." and "..".
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        let valid = (1..=casemate_protocol::MAX_ID).contains(&text.len())
            && text.bytes().all(allowed)
            && !matches!(text, "." | "..");
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId(text.to_owned()))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for Id {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for good in ["a", "web-1.2_3+x", &"f".repeat(64)] {
            assert!(Id::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "../x",
            "a b",
            "ä",
            "a\n",
            &"f".repeat(257),
        ] {
            assert!(Id::new(bad).is_err(), "{bad}");
        }
    }
}
