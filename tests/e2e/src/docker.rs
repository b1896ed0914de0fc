//! A Docker engine of the scenario's own: its state in the scenario's folder,
//! its network and mounts in namespaces that end with it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::Skip;
use crate::command::{Command, Finished, Running};
use crate::host::Host;
use crate::images;
use crate::network::{http_get, inside};
use crate::runtime::{Kind, checkout};
use crate::wait::until_true;

/// How long an engine may take to begin and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name under which engines know the scenario's runtime.
const RUNTIME: &str = "scenario";

/// Which engine. What differs for a runtime is above all when a container gets its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 20.10: by a prestart hook.
    V20,
    /// 28: between create and start, without a hook.
    V28,
}

impl Release {
    /// The name of the folder into which it was unpacked.
    fn name(self) -> &'static str {
        match self {
            Release::V20 => "docker20",
            Release::V28 => "docker28",
        }
    }

    /// The folder, which has a containerd as well, or why there is none.
    pub fn programs(self) -> Result<PathBuf> {
        let place = checkout().join("build/clients").join(self.name());
        if place.join("usr/sbin/dockerd").exists() {
            return Ok(place);
        }
        let why = fs::read_to_string(place.with_extension("missing"));
        let why = why.unwrap_or_else(|_| {
            format!(
                "no {} engine: `cargo xtask clients` unpacks one",
                self.name()
            )
        });
        Err(Skip(why).into())
    }
}

/// A running engine with the BusyBox image.
pub struct Docker<'h> {
    /// The machine on which it runs.
    pub host: &'h Host,
    /// Which one it is.
    pub release: Release,
    programs: PathBuf,
    engine: Option<Running<'h>>,
}

impl<'h> Docker<'h> {
    /// Starts an engine whose default runtime is the scenario's.
    pub fn start(host: &'h Host, release: Release) -> Result<Docker<'h>> {
        let mut docker = Docker {
            host,
            release,
            programs: release.programs()?,
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

    /// Gives the engine an image beside BusyBox.
    pub fn load(&self, image: &str) -> Result<()> {
        let load = self.plain(["load", "--quiet", "--input"]);
        load.arg(images::archive(image)?).run()?.ok()?;
        Ok(())
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

    /// Runs a command of the client that must succeed.
    pub fn does<A: AsRef<str>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Finished> {
        self.command(arguments).run()?.ok()
    }

    /// What `docker inspect` says, by a Go template.
    pub fn inspect(&self, object: &str, template: &str) -> Result<String> {
        Ok(self.does(["inspect", "--format", template, object])?.text())
    }

    /// Removes containers, running or not.
    pub fn remove(&self, containers: &[&str]) -> Result<()> {
        self.does([&["rm", "--force"], containers].concat())?;
        Ok(())
    }

    /// A command in the network of the engine, where its bridges are.
    pub fn beside(&self, program: &str) -> Result<Command<'h>> {
        let namespace = format!("--net={}", self.network()?);
        Ok(self.host.command("nsenter").arg(namespace).arg(program))
    }

    /// What a server says to who asks for `/` at an address in the network of
    /// the engine, where its ports are.
    pub fn fetch(&self, address: &str) -> Result<String> {
        inside(self.network()?, || http_get(address))
    }

    fn network(&self) -> Result<String> {
        let engine = self.engine.as_ref().context("the engine has ended")?;
        Ok(format!("/proc/{}/ns/net", engine.pid))
    }

    /// The engine's configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.folder().join("daemon.json")
    }

    /// Makes the engine read its configuration again.
    pub fn reload(&self) -> Result<()> {
        let engine = self.engine.as_ref().context("the engine has ended")?;
        engine.signal(Signal::SIGHUP)
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
        let path =
            [&folder.join("bin"), &bin, &sbin].map(|folder| folder.to_string_lossy().into_owned());
        let path = format!("{}:{inherited}", path.join(":"));
        self.host
            .command("unshare")
            .env("PATH", path)
            // Where it explains itself when it is slow to end.
            .env("TMPDIR", folder.join("tmp"))
            .args(["--net", "--mount", "--propagation", "private"])
            .args(["sh", "-c", "ip link set lo up && exec dockerd \"$@\"", "sh"])
            .arg("--config-file")
            .arg(self.configuration())
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
        for name in ["bin", "client", "tmp"] {
            fs::create_dir_all(folder.join(name)).with_context(|| folder.display().to_string())?;
        }
        // BuildKit runs its steps with what is called runc in the engine's path.
        let program = &self.host.runtime.path;
        symlink(program, folder.join("bin/runc")).context("the runtime's link")?;
        if self.host.runtime.kind == Kind::Casemate {
            // By this name containerd finds it without configuration.
            symlink(program, folder.join("bin/containerd-shim-casemate-v2"))?;
        }
        let plugins = self.programs.join("usr/libexec/docker/cli-plugins");
        symlink(plugins, folder.join("client/cli-plugins"))?;
        let path = program.to_string_lossy();
        let config = serde_json::json!({
            "runtimes": { RUNTIME: { "path": path } },
            "default-runtime": RUNTIME,
        });
        Ok(fs::write(self.configuration(), config.to_string())?)
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
