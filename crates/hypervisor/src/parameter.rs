//! Parameters of the guest kernel's command line.

use std::{fmt, str::FromStr};

/// One word of the kernel command line: a flag, or a name with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter(String);

/// Why something is no kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel parameter {0:?}: expected one word of printable ASCII without quotes")]
pub struct BadParameter(pub String);

impl Parameter {
    /// A parameter that is there or not, like `quiet`.
    ///
    /// # Errors
    /// When it is not one word.
    pub fn flag(name: &str) -> Result<Self, BadParameter> {
        let sound = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'"');
        if sound {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadParameter(name.to_owned()))
        }
    }

    /// A word that is known to be one.
    pub(crate) fn known(word: &str) -> Self {
        Self(word.to_owned())
    }

    /// A parameter with a value, like `panic=-1`.
    ///
    /// # Errors
    /// When name and value are not one word together.
    pub fn value(name: &str, value: impl fmt::Display) -> Result<Self, BadParameter> {
        Self::flag(&format!("{name}={value}"))
    }

    /// Every word of a line, as an administrator writes it.
    ///
    /// # Errors
    /// For the first word that cannot be a parameter.
    pub fn words(line: &str) -> Result<Vec<Self>, BadParameter> {
        line.split_ascii_whitespace().map(Self::flag).collect()
    }
}

impl FromStr for Parameter {
    type Err = BadParameter;

    fn from_str(word: &str) -> Result<Self, BadParameter> {
        Self::flag(word)
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cannot_smuggle_other_words() {
        assert_eq!(
            Parameter::value("panic", -1).unwrap().to_string(),
            "panic=-1"
        );
        for bad in ["", "a b", "a\"b", "a\n", "ä", "a\u{1b}[0m"] {
            assert_eq!(Parameter::flag(bad), Err(BadParameter(bad.to_owned())));
        }
        assert!(Parameter::value("init", "/a /b").is_err());
        let words = Parameter::words(" quiet  panic=1 ").unwrap();
        assert_eq!(words.len(), 2);
        assert_eq!("x=1".parse::<Parameter>().unwrap().to_string(), "x=1");
    }
}
