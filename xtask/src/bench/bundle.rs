//! The bundle that all runtimes are given.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use crate::command;
use crate::image::busybox;

/// A bundle with busybox alone.
#[derive(Clone)]
pub(super) struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// Makes one in `folder`, whose program is `true`.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let bundle = Self {
            path: folder.join("bundle"),
        };
        let rootfs = bundle.rootfs();
        for directory in ["bin", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(rootfs.join(directory))?;
        }
        fs::copy(busybox::program()?, rootfs.join("bin/busybox"))?;
        for name in ["true", "sleep"] {
            symlink("busybox", rootfs.join("bin").join(name))?;
        }
        command::output(
            Command::new("runc")
                .args(["spec", "--bundle"])
                .arg(&bundle.path),
        )?;
        bundle.set_program(&["true"])?;
        Ok(bundle)
    }

    /// The root file system of its containers.
    pub(super) fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What containers that are made from now on run.
    pub(super) fn set_program(&self, args: &[&str]) -> Result<()> {
        self.edit(|spec| {
            spec["process"]["terminal"] = json!(false);
            spec["process"]["args"] = json!(args);
            // The caller may not have the right to more.
            spec["process"]["rlimits"] = json!([]);
        })
    }

    /// Changes what its containers are made from.
    pub(super) fn edit(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let path = self.path.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
        change(&mut spec);
        Ok(fs::write(path, serde_json::to_vec(&spec)?)?)
    }
}
