//! The runtimes that are compared, and how they are called here.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bundle::Bundle;
use crate::options::{Common, Name};
use crate::{Subject, Variant, command};

/// How long a program that ends by itself may take for that.
const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime with a folder of its own for its state.
#[derive(Debug, Clone)]
pub struct Runtime {
    name: String,
    launcher: Launcher,
    arguments: Vec<OsString>,
    root: PathBuf,
}

/// How a runtime is called.
#[derive(Debug, Clone)]
enum Launcher {
    Plain(PathBuf),
    /// Where it does not see the cgroup v2 hierarchy beside those of v1: crun refuses to work
    /// with both. What that takes is part of what is measured: a few milliseconds.
    WithoutUnified(PathBuf),
}

/// What can be measured, and what cannot.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that work here.
    pub runtimes: Vec<Runtime>,
    /// The others, each with the reason.
    pub left_out: Vec<(String, String)>,
}

impl Found {
    /// Does without one that works, for a reason.
    pub(crate) fn leave_out(&mut self, name: &str, reason: &str) {
        let before = self.runtimes.len();
        self.runtimes.retain(|runtime| runtime.name() != name);
        if self.runtimes.len() < before {
            self.left_out.push((name.to_owned(), reason.to_owned()));
        }
    }

    /// Tries the runtimes that are wanted with the bundle, whose program ends at once.
    ///
    /// # Errors
    /// When files cannot be written, or Casemate itself does not work.
    pub fn look(
        subject: &Subject,
        common: &Common,
        bundle: &Bundle,
        folder: &Path,
    ) -> Result<Self> {
        let mut found = Self::default();
        let others = [
            (Name::Runc, "runc"),
            (Name::Crun, "crun"),
            (Name::Runsc, "runsc"),
        ];
        for (name, program) in others {
            if common.wants(name) {
                match Runtime::usable(program, bundle, folder) {
                    Ok(runtime) => found.runtimes.push(runtime),
                    Err(error) => found
                        .left_out
                        .push((program.to_owned(), first_line(&error))),
                }
            }
        }
        if common.wants(Name::Casemate) {
            found.look_for_casemate(subject, bundle, folder)?;
        }
        Ok(found)
    }
}

impl Found {
    /// Every way to start that works here; one of them has to.
    fn look_for_casemate(
        &mut self,
        subject: &Subject,
        bundle: &Bundle,
        folder: &Path,
    ) -> Result<()> {
        let mut failure = None;
        for variant in &subject.variants {
            match Runtime::casemate(subject, variant, folder)
                .and_then(|runtime| runtime.starts_as(variant, bundle).map(|()| runtime))
            {
                Ok(runtime) => self.runtimes.push(runtime),
                Err(error) => {
                    self.left_out
                        .push((variant.name.clone(), first_line(&error)));
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(error) if !self.runtimes.iter().any(Runtime::is_casemate) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Runtime {
    /// Casemate with one of its configurations, prepared.
    ///
    /// # Errors
    /// When the configuration cannot be written, or not prepared for.
    pub fn casemate(subject: &Subject, variant: &Variant, folder: &Path) -> Result<Self> {
        let mut runtime = Self::new(
            &variant.name,
            Launcher::Plain(subject.casemate.clone()),
            folder,
        );
        if let Some(configuration) = &variant.configuration {
            let file = folder.join(format!("{}.toml", variant.name.replace(' ', "-")));
            fs::write(&file, configuration).with_context(|| file.display().to_string())?;
            runtime.arguments = vec!["--config".into(), file.into()];
        }
        if !variant.prepare.is_empty() {
            command::output(runtime.command().args(&variant.prepare))?;
        }
        Ok(runtime)
    }

    /// Starts once, and sees whether it was in the way that is to be measured.
    fn starts_as(&self, variant: &Variant, bundle: &Bundle) -> Result<()> {
        let running = self.run_detached(bundle, "try")?;
        let Some(span) = variant.span else {
            return Ok(());
        };
        let told: Value = serde_json::from_str(&running.call("timeline", &["--format", "json"])?)?;
        let spans = told["spans"].as_array().into_iter().flatten();
        let mut names = spans.filter_map(|one| one["name"].as_str());
        ensure!(
            names.any(|name| name.starts_with(span)),
            "its timeline has no {span:?}: see casemate template list"
        );
        Ok(())
    }

    /// A way in which a runtime works here, if there is one.
    ///
    /// # Errors
    /// Why it does not.
    pub fn usable(name: &str, bundle: &Bundle, folder: &Path) -> Result<Self> {
        let program = command::find(name).context("not installed")?;
        let mut plain = Self::new(name, Launcher::Plain(program.clone()), folder);
        if name == "runsc" {
            // It would set up the network itself, and refuses the host's.
            plain.arguments = vec!["--network=none".into()];
        }
        let refusal = match command::output(&mut plain.run(bundle, "try")) {
            Ok(_) => return Ok(plain),
            Err(error) => error,
        };
        let _ = command::output(plain.command().args(["delete", "--force", "try"]));
        let mut hidden = plain;
        hidden.launcher = Launcher::WithoutUnified(program);
        match command::output(&mut hidden.run(bundle, "try")) {
            Ok(_) => Ok(hidden),
            Err(_) => {
                let _ = command::output(hidden.command().args(["delete", "--force", "try"]));
                Err(refusal)
            }
        }
    }

    fn new(name: &str, launcher: Launcher, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            launcher,
            arguments: Vec::new(),
            root: folder.join(format!("{}-state", name.replace(' ', "-"))),
        }
    }

    /// As tables show it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of its state, which no other has.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it is Casemate, in any of its ways.
    pub fn is_casemate(&self) -> bool {
        self.name.starts_with("casemate")
    }

    /// Its command line so far that a verb can follow.
    pub fn command(&self) -> Command {
        let mut line = match &self.launcher {
            Launcher::Plain(runtime) => Command::new(runtime),
            Launcher::WithoutUnified(runtime) => {
                let hide = "umount --lazy /sys/fs/cgroup/unified && exec \"$0\" \"$@\"";
                let mut line = Command::new("unshare");
                line.args(["--mount", "sh", "-c", hide]).arg(runtime);
                line
            }
        };
        line.args(&self.arguments).arg("--root").arg(&self.root);
        line
    }

    /// Runs the bundle's program to its end.
    pub fn run(&self, bundle: &Bundle, id: &str) -> Command {
        let mut line = self.command();
        line.args(["run", "--bundle"]).arg(bundle.path()).arg(id);
        line
    }

    /// Makes a container, whose program waits to be started, until what is returned is
    /// dropped.
    pub fn create(&self, bundle: &Bundle, id: &str) -> Result<Running> {
        self.begin(&["create"], bundle, id)
    }

    /// Runs the bundle's program until what is returned is dropped.
    pub fn run_detached(&self, bundle: &Bundle, id: &str) -> Result<Running> {
        self.begin(&["run", "--detach"], bundle, id)
    }

    fn begin(&self, verb: &[&str], bundle: &Bundle, id: &str) -> Result<Running> {
        let running = Running {
            runtime: self.clone(),
            id: id.to_owned(),
            deleted: false,
        };
        let mut line = self.command();
        line.args(verb).arg("--bundle").arg(bundle.path()).arg(id);
        command::run_silently(&mut line)?;
        Ok(running)
    }
}

/// A container that runs. It is removed when this is dropped.
#[derive(Debug)]
pub struct Running {
    runtime: Runtime,
    id: String,
    deleted: bool,
}

impl Running {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The process on the host that stands for it.
    ///
    /// # Errors
    /// When the runtime does not say.
    pub fn pid(&self) -> Result<u32> {
        let state: Value = serde_json::from_str(&self.call("state", &[])?)?;
        let pid = state["pid"].as_u64().context("state has a pid")?;
        Ok(u32::try_from(pid)?)
    }

    /// Waits until its program has ended. It asks again and again: there is no other way
    /// that all runtimes have.
    ///
    /// # Errors
    /// When the runtime does not say, or after a minute.
    pub fn await_end(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state: Value = serde_json::from_str(&self.call("state", &[])?)?;
            if state["status"] == "stopped" {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{}: does not end", self.id);
            sleep(Duration::from_millis(5));
        }
    }

    /// Calls a verb for it, with `arguments` after its id, and gives what was printed.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn call(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        command::output(&mut self.line(verb, arguments))
    }

    /// The command line of a verb for it.
    pub fn line(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut line = self.runtime.command();
        line.args([verb, &self.id]).args(arguments);
        line
    }

    /// Deletes it when its program has ended.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn delete(mut self) -> Result<()> {
        self.call("delete", &[])?;
        self.deleted = true;
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        let mut line = self.runtime.command();
        command::output(line.args(["delete", "--force", &self.id])).map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.deleted {
            return;
        }
        if let Err(error) = self.remove() {
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
