//! Podman as a measured client.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::{command, workspace};

/// Podman with a storage of its own.
#[derive(Clone)]
pub(super) struct Podman {
    folder: PathBuf,
}

impl Podman {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let podman = Self {
            folder: folder.join("podman"),
        };
        fs::create_dir_all(&podman.folder)?;
        fs::write(
            podman.folder.join("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\n",
        )?;
        if command::exists("podman") {
            let image = workspace::build("images").join("busybox.tar");
            command::output(
                podman
                    .line()
                    .args(["load", "--quiet", "--input"])
                    .arg(image),
            )?;
        }
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

    pub(super) fn run(&self, runtime: &Path) -> Result<()> {
        let mut line = self.line();
        line.arg("--runtime")
            .arg(runtime)
            .args(["run", "--rm", "--network", "none"]);
        line.args(["localhost/casemate/busybox", "true"]);
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
