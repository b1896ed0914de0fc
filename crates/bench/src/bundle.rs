//! The bundle that all runtimes are given.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{Subject, command};

/// Names by which the programs in BusyBox are called here.
const PROGRAMS: [&str; 4] = ["true", "sleep", "sh", "dd"];

/// A bundle with BusyBox, or with a root file system of the user's.
#[derive(Debug, Clone)]
pub struct Bundle {
    path: PathBuf,
    rootfs: PathBuf,
}

impl Bundle {
    /// Makes one in `folder`, whose program is `true`. Its root file system is the user's,
    /// which is left as it is, or one with the host's BusyBox alone.
    ///
    /// # Errors
    /// When there is no BusyBox, or it cannot be written.
    pub fn new(subject: &Subject, folder: &Path, rootfs: Option<&Path>) -> Result<Self> {
        let path = folder.join("bundle");
        fs::create_dir_all(&path)?;
        let rootfs = match rootfs {
            Some(given) => {
                ensure!(
                    fs::symlink_metadata(given.join("bin/busybox")).is_ok(),
                    "--rootfs {}: has no bin/busybox",
                    given.display()
                );
                fs::canonicalize(given)?
            }
            None => busybox_alone(&path.join("rootfs"))?,
        };
        let mut spec = Command::new(&subject.casemate);
        command::output(spec.args(["spec", "--bundle"]).arg(&path))?;
        let bundle = Self { path, rootfs };
        bundle.set_program(&["true"])?;
        Ok(bundle)
    }

    /// A copy in `folder`, whose configuration is its own.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn copy(&self, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        fs::copy(self.configuration(), folder.join("config.json"))?;
        Ok(Self {
            path: folder.to_owned(),
            rootfs: self.rootfs.clone(),
        })
    }

    /// Takes over what containers of `other` are made from.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        fs::copy(other.configuration(), self.configuration())?;
        Ok(())
    }

    /// The root file system of its containers.
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What containers that are made from now on run: a program of BusyBox.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_program(&self, args: &[&str]) -> Result<()> {
        let words: Vec<&str> = [&["/bin/busybox"], args].concat();
        self.edit(|spec| {
            spec["process"]["terminal"] = json!(false);
            spec["process"]["args"] = json!(words);
            // The caller may not have the right to more.
            spec["process"]["rlimits"] = json!([]);
            spec["root"] = json!({ "path": self.rootfs });
        })
    }

    /// Changes what its containers are made from.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let path = self.configuration();
        let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
        change(&mut spec);
        Ok(fs::write(path, serde_json::to_vec(&spec)?)?)
    }

    fn configuration(&self) -> PathBuf {
        self.path.join("config.json")
    }
}

/// The host's BusyBox.
pub(crate) fn busybox() -> Result<PathBuf> {
    command::find("busybox")
        .context("no busybox: install busybox-static, or name a root file system with --rootfs")
}

fn busybox_alone(rootfs: &Path) -> Result<PathBuf> {
    for directory in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(rootfs.join(directory))?;
    }
    fs::copy(busybox()?, rootfs.join("bin/busybox"))?;
    for name in PROGRAMS {
        symlink("busybox", rootfs.join("bin").join(name))?;
    }
    Ok(rootfs.to_owned())
}
