//! What can be wrong with a configuration.

use std::io;
use std::path::PathBuf;

/// Why a configuration was refused. Each is one line that names the file and,
/// within it, the line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or the folder of the drop-ins cannot be read.
    #[error("cannot read configuration {}: {source}", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },

    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says, on one line.
        message: String,
    },

    /// There is no such table or key.
    #[error("{}:{line}: unknown {what} {name:?}{}", .path.display(), suggestion(.nearest))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// "table" or "key".
        what: &'static str,
        /// As the file has it; a key with its table in front.
        name: String,
        /// A known name that may have been meant.
        nearest: Option<String>,
    },

    /// The key exists but does not accept the value.
    #[error("{}:{line}: {key} = {found}: expected {expected}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// With its table in front.
        key: String,
        /// The value as the file has it.
        found: String,
        /// What the key accepts.
        expected: String,
    },
}

fn suggestion(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("; did you mean {name:?}?"),
        None => String::new(),
    }
}
