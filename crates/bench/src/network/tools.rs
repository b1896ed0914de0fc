//! iperf3 with its libraries, and BusyBox: what hosts, containers and bare guests measure with.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bundle;
use crate::command;

/// Where the machine has it; its libraries are asked of the loader.
pub(super) const IPERF: &str = "/usr/bin/iperf3";

pub(super) struct Tools {
    pub(super) busybox: PathBuf,
    /// Libraries of iperf3 and their loader, as it wants to find them.
    libraries: Vec<PathBuf>,
}

impl Tools {
    pub(super) fn find() -> Result<Self> {
        let list = command::output(Command::new("ldd").arg(IPERF))
            .context("iperf3 is needed\nhint: apt-get install iperf3")?;
        Ok(Self {
            busybox: bundle::busybox()?,
            libraries: list.lines().filter_map(library).collect(),
        })
    }

    /// iperf3 and what it needs: where each file is and what it holds.
    pub(super) fn files(&self) -> Result<Vec<(&Path, Vec<u8>)>> {
        let paths = std::iter::once(Path::new(IPERF)).chain(self.libraries.iter().map(|p| &**p));
        paths
            .map(|path| {
                let content = fs::read(path).with_context(|| path.display().to_string())?;
                Ok((path, content))
            })
            .collect()
    }

    /// Puts iperf3 into a root file system.
    pub(super) fn install(&self, root: &Path) -> Result<()> {
        for (path, content) in self.files()? {
            let place = root.join(path.strip_prefix("/")?);
            fs::create_dir_all(place.parent().context("a file is in a folder")?)?;
            fs::write(&place, content)?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// iperf3, ended when it takes longer: it waits for ever for a server that has died.
    pub(super) fn iperf(&self, limit: Duration) -> Command {
        let mut line = Command::new("timeout");
        line.arg(limit.as_secs().to_string()).arg(IPERF);
        line
    }
}

/// The file in a line of ldd(1), which is `name => /path (address)` or `/path (address)`.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
    Some(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_loaders_list() {
        let lines = [
            "\tlinux-vdso.so.1 (0x00007ffd)",
            "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)",
            "\t/lib64/ld-linux-x86-64.so.2 (0x00007f)",
        ];
        let found: Vec<PathBuf> = lines.into_iter().filter_map(library).collect();
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
    }
}
