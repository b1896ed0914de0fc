//! The values that keys accept: how they are read from TOML, written to it
//! and described in an error or the reference.

use std::fmt::Write as _;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use crate::choice::Choice;

/// A set of accepted values of type `T`.
pub(crate) trait Domain<T> {
    /// What is accepted, as the object of "expected": "an integer from 1 to 8".
    fn accepts(&self) -> String;
    /// The value, if it is accepted.
    fn read(&self, value: &DeValue<'_>) -> Option<T>;
    /// The value, if it is accepted, from where there are only texts: an annotation.
    fn read_text(&self, text: &str) -> Option<T> {
        self.read(&DeValue::String(text.into()))
    }
    /// The value as TOML.
    fn write(&self, value: &T) -> String;
}

impl Domain<u32> for RangeInclusive<u32> {
    fn accepts(&self) -> String {
        format!("an integer from {} to {}", self.start(), self.end())
    }

    fn read(&self, value: &DeValue<'_>) -> Option<u32> {
        let integer = value.as_integer()?;
        let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok()?;
        self.contains(&number).then_some(number)
    }

    fn read_text(&self, text: &str) -> Option<u32> {
        text.parse().ok().filter(|number| self.contains(number))
    }

    fn write(&self, value: &u32) -> String {
        value.to_string()
    }
}

/// Any absolute path. Whether the file exists is found out by who uses it.
pub(crate) struct AbsolutePath;

impl Domain<PathBuf> for AbsolutePath {
    fn accepts(&self) -> String {
        "an absolute path".to_owned()
    }

    fn read(&self, value: &DeValue<'_>) -> Option<PathBuf> {
        let path = Path::new(value.as_str()?);
        let usable = path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0);
        usable.then(|| path.to_owned())
    }

    fn write(&self, value: &PathBuf) -> String {
        quote(&value.to_string_lossy())
    }
}

/// One line of printable ASCII of at most this many bytes.
pub(crate) struct Line(pub(crate) usize);

impl Domain<String> for Line {
    fn accepts(&self) -> String {
        format!("one line of printable ASCII, at most {} characters", self.0)
    }

    fn read(&self, value: &DeValue<'_>) -> Option<String> {
        let text = value.as_str()?;
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        (printable && text.len() <= self.0).then(|| text.to_owned())
    }

    fn write(&self, value: &String) -> String {
        quote(value)
    }
}

/// One word of a [`Choice`].
pub(crate) struct OneOf<T>(PhantomData<T>);

impl<T> OneOf<T> {
    pub(crate) const fn words() -> Self {
        Self(PhantomData)
    }
}

impl<T: Choice> Domain<T> for OneOf<T> {
    fn accepts(&self) -> String {
        let words: Vec<String> = T::WORDS.iter().map(|(word, _)| quote(word)).collect();
        match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
            None => String::new(),
        }
    }

    fn read(&self, value: &DeValue<'_>) -> Option<T> {
        let text = value.as_str()?;
        let found = T::WORDS.iter().find(|(word, _)| *word == text)?;
        Some(found.1)
    }

    fn write(&self, value: &T) -> String {
        let found = T::WORDS.iter().find(|(_, choice)| choice == value);
        quote(found.map_or("", |(word, _)| word))
    }
}

/// A basic string of TOML 1.0.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
