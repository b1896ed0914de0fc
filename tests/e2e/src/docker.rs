//! A Docker engine of the scenario's own: its state in the scenario's folder,
//! its network and mounts in namespaces that end with it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::Skip;
use crate::command::{Command, Running};
use crate::host::Host;
use crate::images;
use crate::runtime::checkout;
use crate::wait::until_true;

/// How long an engine may take to begin and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name under which engines know the scenario's runtime.
const RUNTIME: &str = "scenario";

/// A running engine with the BusyBox image.
pub struct Docker<'h> {
    host: &'h Host,
    programs: PathBuf,
    engine: Option<Running<'h>>,
}

impl<'h> Docker<'h> {
    /// Starts an engine whose default runtime is the scenario's.
    pub fn start(host: &'h Host) -> Result<Docker<'h>> {
        let programs = checkout().join("build/clients/docker");
        if !programs.join("usr/sbin/dockerd").exists() {
            let why = "no Docker engine: `cargo xtask clients` unpacks one";
            return Err(Skip(why.to_owned()).into());
        }
        let mut docker = Docker {
            host,
            programs,
            engine: None,
        };
        docker.configure()?;
        docker.engine = Some(docker.engine_command().start()?);
        until_true("the engine to answer", PATIENCE, || {
            let info = docker
                .plain(["info", "--format", "{{.ServerVersion}}"])
                .run()?;
            Ok(info.exit.shell() == 0)
        })?;
        let archive = images::rootfs_archive(host)?;
        let import = docker.plain(["import", "--change", "CMD [\"/bin/sh\"]"]);
        import.arg(archive).arg(images::BUSYBOX).run()?.ok()?;
        Ok(docker)
    }

    /// Any command of the client.
    pub fn command<A: AsRef<str>>(&self, arguments: impl IntoIterator<Item = A>) -> Command<'h> {
        let arguments = arguments.into_iter().map(|a| a.as_ref().to_owned());
        self.plain(arguments)
    }

    /// `docker run` without a network.
    pub fn run<A: AsRef<str>>(&self, arguments: impl IntoIterator<Item = A>) -> Command<'h> {
        let arguments = arguments.into_iter().map(|a| a.as_ref().to_owned());
        self.plain(["run", "--network=none"]).args(arguments)
    }

    /// Runs a container in the background and gives its id.
    pub fn run_detached<A: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        let arguments = arguments.into_iter().map(|a| a.as_ref().to_owned());
        let run = self
            .plain(["run", "--network=none", "--detach"])
            .args(arguments);
        Ok(run.run()?.ok()?.text())
    }

    /// What `docker inspect` says, by a Go template.
    pub fn inspect(&self, container: &str, template: &str) -> Result<String> {
        let found = self
            .plain(["inspect", "--format", template, container])
            .run()?;
        Ok(found.ok()?.text())
    }

    /// A command in the network of the engine, where its ports are.
    pub fn beside(&self, program: &str) -> Result<Command<'h>> {
        let engine = self.engine.as_ref().context("the engine has ended")?;
        let namespace = format!("--net=/proc/{}/ns/net", engine.pid);
        Ok(self.host.command("nsenter").arg(namespace).arg(program))
    }

    /// Ends the engine; no container may be left.
    pub fn stop(mut self) -> Result<()> {
        let left = self.plain(["ps", "--all", "--quiet"]).run()?.ok()?;
        ensure!(left.text().is_empty(), "containers are left: {left}");
        let Some(engine) = self.engine.take() else {
            return Ok(());
        };
        engine.signal(Signal::SIGTERM)?;
        engine
            .exit_within(PATIENCE)
            .context("the end of the engine")?;
        // Folders that engines make and leave; /run is the scenario's own.
        for folder in ["/run/containerd", "/run/docker"] {
            fs::remove_dir_all(folder).with_context(|| folder.to_owned())?;
        }
        Ok(())
    }

    fn plain<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command<'h> {
        self.host
            .command(self.programs.join("usr/bin/docker"))
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.folder().join("client"))
            .args(arguments)
    }

    fn engine_command(&self) -> Command<'h> {
        let folder = self.folder();
        let (bin, sbin) = (
            self.programs.join("usr/bin"),
            self.programs.join("usr/sbin"),
        );
        let inherited = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{}:{inherited}", bin.display(), sbin.display());
        self.host
            .command("unshare")
            .env("PATH", path)
            // Where it explains itself when it is slow to end.
            .env("TMPDIR", folder.join("tmp"))
            .args(["--net", "--mount", "--propagation", "private"])
            .args(["sh", "-c", "ip link set lo up && exec dockerd \"$@\"", "sh"])
            .arg("--config-file")
            .arg(folder.join("daemon.json"))
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(folder.join("exec"))
            .arg("--pidfile")
            .arg(folder.join("pid"))
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .arg(format!("--cgroup-parent=/{}", self.host.cgroup))
            .limit(Duration::from_secs(600))
    }

    fn configure(&self) -> Result<()> {
        let folder = self.folder();
        for name in ["client", "tmp"] {
            fs::create_dir_all(folder.join(name)).with_context(|| folder.display().to_string())?;
        }
        let path = self.host.runtime.path.to_string_lossy();
        let config = serde_json::json!({
            "runtimes": { RUNTIME: { "path": path } },
            "default-runtime": RUNTIME,
        });
        fs::write(folder.join("daemon.json"), config.to_string())?;
        Ok(())
    }

    fn folder(&self) -> PathBuf {
        self.host.dir.join("docker")
    }

    fn socket(&self) -> PathBuf {
        self.folder().join("s")
    }
}

impl Drop for Docker<'_> {
    /// A scenario that has failed leaves the engine to the clean-up of its
    /// processes, which is told here to begin with the right one.
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            let said = String::from_utf8_lossy(&engine.complained()).into_owned();
            let errors = said.lines().filter(|line| line.contains("level=error"));
            for line in errors.take(10) {
                self.host.note(format!("dockerd: {line}"));
            }
            let _ = engine.signal(Signal::SIGTERM);
            let _ = engine.exit_within(PATIENCE);
        }
    }
}
