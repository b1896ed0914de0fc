//! The runtimes that are compared, and how they are called here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::bundle::Bundle;
use crate::command;

/// The option that says which Casemate is measured.
#[derive(clap::Args)]
pub(super) struct Program {
    /// The runtime to measure
    #[arg(long, value_name = "FILE", default_value = "/usr/local/bin/casemate")]
    casemate: PathBuf,
}

impl Program {
    /// Its absolute path: Podman takes a relative one for a name.
    pub(super) fn path(&self) -> Result<PathBuf> {
        fs::canonicalize(&self.casemate).with_context(|| self.casemate.display().to_string())
    }
}

/// A runtime with a folder of its own for its state.
#[derive(Clone)]
pub(super) struct Runtime {
    name: String,
    launcher: Launcher,
    root: PathBuf,
}

/// How a runtime is called.
#[derive(Clone)]
enum Launcher {
    Plain(PathBuf),
    /// Where it does not see the cgroup v2 hierarchy beside those of v1: crun refuses to work
    /// with both. What that takes is part of what is measured: a few milliseconds.
    WithoutUnified(PathBuf),
}

impl Runtime {
    pub(super) fn casemate(program: &Path, folder: &Path) -> Self {
        Self::new("casemate", Launcher::Plain(program.to_owned()), folder)
    }

    /// Those among runc and crun that work here; why one does not is said.
    pub(super) fn others(bundle: &Bundle, folder: &Path) -> Vec<Self> {
        let mut found = Vec::new();
        for name in ["runc", "crun"] {
            match Self::usable(name, bundle, folder) {
                Ok(runtime) => found.push(runtime),
                Err(error) => println!("{name} is left out: {}", first_line(&error)),
            }
        }
        found
    }

    /// A way in which a runtime works here, if there is one.
    pub(super) fn usable(name: &str, bundle: &Bundle, folder: &Path) -> Result<Self> {
        let plain = Self::new(name, Launcher::Plain(name.into()), folder);
        let refusal = match command::output(&mut plain.run(bundle, "try")) {
            Ok(_) => return Ok(plain),
            Err(error) => error,
        };
        let _ = command::output(plain.command().args(["delete", "--force", "try"]));
        let hidden = Self::new(name, Launcher::WithoutUnified(name.into()), folder);
        match command::output(&mut hidden.run(bundle, "try")) {
            Ok(_) => Ok(hidden),
            Err(_) => Err(refusal),
        }
    }

    fn new(name: &str, launcher: Launcher, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            launcher,
            root: folder.join(format!("{name}-state")),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its command line so far that a verb can follow.
    pub(super) fn command(&self) -> Command {
        let mut line = match &self.launcher {
            Launcher::Plain(runtime) => Command::new(runtime),
            Launcher::WithoutUnified(runtime) => {
                let hide = "umount --lazy /sys/fs/cgroup/unified && exec \"$0\" \"$@\"";
                let mut line = Command::new("unshare");
                line.args(["--mount", "sh", "-c", hide]).arg(runtime);
                line
            }
        };
        line.arg("--root").arg(&self.root);
        line
    }

    /// Runs the bundle's program to its end.
    pub(super) fn run(&self, bundle: &Bundle, id: &str) -> Command {
        let mut line = self.command();
        line.args(["run", "--bundle"]).arg(bundle.path()).arg(id);
        line
    }

    /// Runs the bundle's program until what is returned is dropped.
    pub(super) fn run_detached(&self, bundle: &Bundle, id: &str) -> Result<Running> {
        let running = Running {
            runtime: self.clone(),
            id: id.to_owned(),
        };
        let mut line = self.command();
        line.args(["run", "--detach", "--bundle"])
            .arg(bundle.path())
            .arg(id);
        command::run_silently(&mut line)?;
        Ok(running)
    }
}

/// A container that runs. It is removed when this is dropped.
pub(super) struct Running {
    runtime: Runtime,
    id: String,
}

impl Running {
    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The process on the host that stands for it.
    pub(super) fn pid(&self) -> Result<u64> {
        let state: Value = serde_json::from_str(&self.call("state", &[])?)?;
        state["pid"].as_u64().context("state has a pid")
    }

    /// The folder of its state.
    pub(super) fn directory(&self) -> PathBuf {
        self.runtime.root.join(&self.id)
    }

    /// Calls a verb for it, with `arguments` after its id, and gives what was printed.
    pub(super) fn call(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        let mut line = self.runtime.command();
        command::output(line.args([verb, &self.id]).args(arguments))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut line = self.runtime.command();
        if let Err(error) = command::output(line.args(["delete", "--force", &self.id])) {
            eprintln!("{error:#}");
        }
    }
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}")
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
