//! The version of a QEMU program.

use std::{fmt, fs::File, io, path::Path, time::Duration};

use casemate_linux::{
    deadline,
    process::{self, Birth},
};
use nix::{
    fcntl::OFlag,
    unistd::{dup2_stderr, dup2_stdout, pipe2},
};
use serde::{Deserialize, Serialize};

/// The oldest version that has everything the back end asks for.
pub(super) const OLDEST: Version = Version {
    major: 7,
    minor: 2,
    micro: 0,
};

/// How long the program may take to say it.
const LIMIT: Duration = Duration::from_secs(10);

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Version {
    /// Asks the program.
    ///
    /// # Errors
    /// When it cannot be run, takes too long, or is not QEMU.
    pub(super) fn ask(program: &Path, environment: &[Vec<u8>]) -> io::Result<Self> {
        let (answer, writer) = pipe2(OFlag::O_CLOEXEC)?;
        let path = program.as_os_str().as_encoded_bytes();
        let parent = std::process::id();
        let child = process::spawn(Birth::default(), || {
            let become_qemu = || {
                dup2_stdout(&writer)?;
                dup2_stderr(&writer)?;
                process::die_with_parent(parent)?;
                let arguments = [path.to_vec(), b"--version".to_vec()];
                process::exec(path, &arguments, environment)
            };
            let Err(error) = become_qemu();
            error.raw_os_error().unwrap_or(0)
        })?;
        drop(writer);
        let Some(exit) = deadline::wait_or_kill(&child, LIMIT)? else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        let text = io::read_to_string(File::from(answer))?;
        if let (process::Exit::Code(errno @ 1..), true) = (exit, text.is_empty()) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        Self::parse(&text).ok_or_else(|| {
            let line = text.lines().next().unwrap_or_default();
            io::Error::other(format!(
                "not a QEMU system emulator: it {exit} and says {line:?}"
            ))
        })
    }

    /// Reads "QEMU emulator version 7.2.22 (Debian …)".
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("QEMU emulator version ")?;
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let mut numbers = rest[..end.unwrap_or(rest.len())].split('.');
        let mut number = || numbers.next().and_then(|number| number.parse().ok());
        Some(Self {
            major: number()?,
            minor: number()?,
            micro: number().unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let read = |text| Version::parse(text).map(|version| version.to_string());
        assert_eq!(
            read("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright").as_deref(),
            Some("7.2.22")
        );
        assert_eq!(
            read("QEMU emulator version 10.0\n").as_deref(),
            Some("10.0.0")
        );
        assert_eq!(read("qemu-img version 7.2"), None);
        assert_eq!(read("QEMU emulator version x"), None);
        let old = Version::parse("QEMU emulator version 6.2.0").unwrap();
        let new = Version::parse("QEMU emulator version 10.0.2").unwrap();
        assert!(old < OLDEST && OLDEST < new);
    }
}
