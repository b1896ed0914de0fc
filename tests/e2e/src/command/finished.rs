//! A command that has ended, and what it said.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// The code a shell makes of it.
    pub fn shell(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(number) => 128 + number,
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The command as one would type it.
    pub line: String,
    /// How it ended.
    pub exit: Exit,
    /// How long it ran.
    pub took: Duration,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Demands exit code 0.
    pub fn ok(self) -> Result<Finished> {
        self.exits(0)
    }

    /// Demands this exit code.
    pub fn exits(self, code: i32) -> Result<Finished> {
        if self.exit.shell() == code {
            return Ok(self);
        }
        bail!("exit code {code} was expected\n{self}");
    }

    /// Its output as text, without the line end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Its errors as text, without the line end.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "$ {}: {:?} after {:.2?}",
            self.line, self.exit, self.took
        )?;
        f.write_str(&shown("stdout", &self.stdout))?;
        f.write_str(&shown("stderr", &self.stderr))
    }
}

/// The beginning of a stream, indented, for a report.
pub(super) fn shown(name: &str, bytes: &[u8]) -> String {
    const MOST: usize = 3000;
    if bytes.is_empty() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]);
    let more = bytes.len().saturating_sub(MOST);
    let tail = if more > 0 {
        format!("\n    … and {more} bytes")
    } else {
        String::new()
    };
    let text = text.trim_end().replace('\n', "\n    ");
    format!("\n  {name}:\n    {text}{tail}")
}
