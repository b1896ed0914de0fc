//! Podman as a measured client.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command;

const IMAGE: &str = "localhost/casemate-bench";

/// Podman with a storage of its own.
#[derive(Debug)]
pub(crate) struct Podman {
    folder: PathBuf,
}

impl Podman {
    /// One that has an image of this root file system.
    pub(crate) fn new(folder: &Path, rootfs: &Path) -> Result<Self> {
        let podman = Self {
            folder: folder.join("podman"),
        };
        fs::create_dir_all(&podman.folder)?;
        fs::write(
            podman.folder.join("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\n",
        )?;
        let archive = podman.folder.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("--directory").arg(rootfs).arg("--create");
        command::output(tar.arg("--file").arg(&archive).arg(".")).context("image")?;
        let mut import = podman.line();
        import.args(["import", "--quiet"]).arg(archive).arg(IMAGE);
        command::output(&mut import)?;
        Ok(podman)
    }

    fn line(&self) -> Command {
        let mut line = Command::new("podman");
        line.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        for (option, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            line.arg(option).arg(self.folder.join(name));
        }
        line
    }

    pub(crate) fn run(&self, runtime: &Path) -> Result<()> {
        let mut line = self.line();
        line.arg("--runtime")
            .arg(runtime)
            .args(["run", "--rm", "--network", "none"])
            .args([IMAGE, "/bin/busybox", "true"]);
        command::output(&mut line).map(drop)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Podman leaves its storage mounted on itself.
        let _ = Command::new("umount")
            .arg(self.folder.join("root/overlay"))
            .stderr(Stdio::null())
            .status();
    }
}
