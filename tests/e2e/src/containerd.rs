//! A containerd of the scenario's own: its state in the scenario's folder, its
//! network and mounts in namespaces that end with the scenario and outlive a
//! containerd that is killed.

mod configuration;
mod ctr;
mod events;
mod shim;
pub mod task;

use std::cell::RefCell;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::Skip;
use crate::command::{Command, Running};
use crate::host::Host;
use crate::mounts::{self, Mount};
use crate::runtime::{Kind, checkout};
use crate::wait::until_true;
use crate::{images, processes};
use configuration::Configuration;
pub use ctr::Ctr;
pub use events::{Event, Events};
pub use shim::{Refusal, Shim, Tasks};
pub use task::Task;

/// How long an engine may take to begin and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long what a container has had may stay after it.
const SETTLE: Duration = Duration::from_secs(5);

/// Where shims have their sockets and clients their FIFOs, whatever the
/// configuration says. `/run` is the scenario's own.
const RUN: &str = "/run/containerd";

/// Which engine. What differs for a shim is above all how it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 1.6: knows the second version of the Task service alone.
    V16,
    /// 1.7: the same.
    V17,
    /// 2.1: knows both, and images by its transfer service.
    V21,
}

impl Release {
    /// The name of the folder into which it was unpacked, for two of them with
    /// the Docker engine that they come with.
    fn folder(self) -> &'static str {
        match self {
            Release::V16 => "docker20",
            Release::V17 => "containerd17",
            Release::V21 => "docker28",
        }
    }

    /// The folder with its programs, or why there is none.
    fn programs(self) -> Result<PathBuf> {
        let place = checkout().join("build/clients").join(self.folder());
        if place.join("usr/bin/containerd").exists() {
            return Ok(place.join("usr/bin"));
        }
        let why = fs::read_to_string(place.with_extension("missing"));
        let name = self.folder();
        let why = why.unwrap_or_else(|_| {
            format!("no containerd of {name}: `cargo xtask clients` unpacks one")
        });
        Err(Skip(why).into())
    }
}

/// A running containerd. It has no image yet: [`Containerd::import`].
pub struct Containerd<'h> {
    /// The machine on which it runs.
    pub host: &'h Host,
    /// Which one it is.
    pub release: Release,
    programs: PathBuf,
    /// A process that does nothing but hold the engine's namespaces.
    place: Running<'h>,
    /// What was mounted there before the first container.
    mounts: Vec<Mount>,
    engine: RefCell<Option<Running<'h>>>,
}

impl<'h> Containerd<'h> {
    /// Starts an engine that knows the scenario's runtime and runc.
    pub fn start(host: &'h Host, release: Release) -> Result<Containerd<'h>> {
        let programs = release.programs()?;
        let configuration = Configuration::of(host);
        configuration.write(&programs)?;
        let place = configuration.place().start()?;
        let mut containerd = Containerd {
            host,
            release,
            programs,
            place,
            mounts: Vec::new(),
            engine: RefCell::new(None),
        };
        until_true("the engine's namespaces", PATIENCE, || {
            let holder = processes::get(containerd.place.pid);
            Ok(holder.is_some_and(|process| process.program() == "sleep"))
        })?;
        containerd.mounts = mounts::of(containerd.place.pid)?;
        containerd.restart()?;
        Ok(containerd)
    }

    /// Starts it on the state of the one that was killed or stopped.
    pub fn restart(&self) -> Result<()> {
        ensure!(self.engine.borrow().is_none(), "the engine runs");
        let configuration = Configuration::of(self.host);
        let path = configuration.search_path(&self.programs);
        let engine = self.beside(self.programs.join("containerd"));
        let engine = engine
            .env("PATH", path)
            // Not where the scenario looks for leftovers of its commands.
            .env("TMPDIR", configuration.folder.join("tmp"))
            .arg("--config")
            .arg(configuration.file())
            .limit(Duration::from_secs(600));
        self.engine.replace(Some(engine.start()?));
        until_true("the engine to answer", PATIENCE, || {
            let version = self.namespace("default").command(["version"]).run()?;
            Ok(version.exit.shell() == 0)
        })
    }

    /// Starts it anew with more in its configuration.
    pub fn reconfigure(&self, more: &str) -> Result<()> {
        let path = Configuration::of(self.host).file();
        let context = || path.display().to_string();
        let file = fs::OpenOptions::new().append(true).open(&path);
        let mut file = file.with_context(context)?;
        file.write_all(more.as_bytes()).with_context(context)?;
        self.kill()?;
        self.restart()
    }

    /// Kills it with signal 9; what it has started goes on.
    pub fn kill(&self) -> Result<()> {
        let engine = self.engine.take().context("the engine has ended")?;
        engine.signal(Signal::SIGKILL)?;
        engine.exit_within(PATIENCE)?;
        Ok(())
    }

    /// Gives a namespace one of the suite's images.
    pub fn import(&self, namespace: &str, image: &str) -> Result<()> {
        let import = self.namespace(namespace).command(["images", "import"]);
        import.arg(images::archive(image)?).run()?.ok()?;
        Ok(())
    }

    /// The client, in namespace `default`.
    pub fn ctr(&self) -> Ctr<'_, 'h> {
        self.namespace("default")
    }

    /// The client, in some namespace.
    pub fn namespace(&self, name: &str) -> Ctr<'_, 'h> {
        Ctr::new(self, name)
    }

    /// The scenario's runtime as clients name it.
    pub fn runtime(&self) -> String {
        format!("io.containerd.{}.v2", self.handler())
    }

    /// The scenario's runtime as Kubernetes names it: `runtime_handler`.
    pub fn handler(&self) -> String {
        self.host.runtime.kind.to_string()
    }

    /// The scenario's shim.
    pub fn shim(&self) -> PathBuf {
        let name = format!("containerd-shim-{}-v2", self.handler());
        match self.host.runtime.kind {
            Kind::Runc => self.programs.join(name),
            Kind::Casemate => Configuration::of(self.host).programs().join(name),
        }
    }

    /// Any program in the engine's namespaces, where its mounts and bridges are.
    pub fn beside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command<'h> {
        self.host
            .command("nsenter")
            .arg(format!("--target={}", self.place.pid))
            .args(["--mount", "--net"])
            .arg(program)
    }

    /// One of the programs that came with the engine.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The network namespace in which the engine and its bridges are.
    pub fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.place.pid).into()
    }

    /// Its gRPC socket; the one for events has `.ttrpc` at the end.
    pub fn socket(&self) -> PathBuf {
        Configuration::of(self.host).socket()
    }

    /// The folder with the networks of pods and of `ctr run --cni`.
    pub fn networks(&self) -> PathBuf {
        Configuration::of(self.host).networks()
    }

    /// What the plugin that gives out addresses has noted: a file for each.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let folder = Configuration::of(self.host).addresses().join("bridge");
        let list = fs::read_dir(folder).into_iter().flatten();
        list.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// The folder of a task: what a shim calls the bundle.
    pub fn bundle(&self, namespace: &str, id: &str) -> PathBuf {
        let tasks = Configuration::of(self.host).tasks();
        tasks.join(namespace).join(id)
    }

    /// What it has logged since it was started.
    pub fn log(&self) -> String {
        let engine = self.engine.borrow();
        let bytes = engine.as_ref().map(Running::complained);
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }

    /// Ends the engine; nothing of a container may be left.
    pub fn stop(self) -> Result<()> {
        let known = self.known()?;
        ensure!(known.is_empty(), "the engine still knows {known:?}");
        let mut left = Vec::new();
        let settled = until_true("the end of what containers have had", SETTLE, || {
            left = self.leftovers()?;
            Ok(left.is_empty())
        });
        settled.with_context(|| format!("left behind:\n  {}", left.join("\n  ")))?;
        if let Some(engine) = self.engine.take() {
            engine.signal(Signal::SIGTERM)?;
            engine
                .exit_within(PATIENCE)
                .context("the end of the engine")?;
        }
        // Folders that containerd and its clients make and leave.
        match fs::remove_dir_all(RUN) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(RUN),
            _ => {}
        }
        self.place.signal(Signal::SIGKILL)?;
        self.place.exit()?;
        Ok(())
    }

    /// Containers and tasks of every namespace.
    fn known(&self) -> Result<Vec<String>> {
        let mut known = Vec::new();
        let spaces = self.ctr().does(["namespaces", "ls", "-q"])?.text();
        for space in spaces.lines() {
            for what in ["tasks", "containers"] {
                let listed = self.namespace(space).does([what, "ls", "-q"])?.text();
                known.extend(listed.lines().map(|id| format!("{what} {space}/{id}")));
            }
        }
        Ok(known)
    }

    /// What is there of tasks and shims. FIFOs are no matter of theirs: who
    /// makes them removes them, unless it was killed.
    fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = entries(&Path::new(RUN).join("s"));
        for space in entries(&Configuration::of(self.host).tasks()) {
            left.extend(entries(Path::new(&space)));
        }
        let mut mounts = mounts::of(self.place.pid)?;
        mounts.retain(|mount| !self.mounts.contains(mount));
        left.extend(mounts.iter().map(|mount| format!("mount {}", mount.point)));
        Ok(left)
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let list = fs::read_dir(folder).into_iter().flatten().flatten();
    list.map(|entry| entry.path().display().to_string())
        .collect()
}

impl Drop for Containerd<'_> {
    /// A scenario that has failed leaves the engine to the clean-up of its
    /// processes; what it has said helps to understand why.
    fn drop(&mut self) {
        let log = self.log();
        let complaints = log
            .lines()
            .filter(|line| line.contains("level=error") || line.contains("level=warn"));
        let last: Vec<&str> = complaints.collect();
        for line in last.iter().rev().take(10).rev() {
            self.host.note(format!("containerd: {line}"));
        }
    }
}
