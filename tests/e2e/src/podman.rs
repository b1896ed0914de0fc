//! Podman, as a user calls it.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::Skip;
use crate::command::Command;
use crate::host::Host;
use crate::images::{self, APPLICATIONS, BUSYBOX, DEBIAN};
use crate::runtime::{Runtime, in_search_path};

/// The number of CAP_SYS_RESOURCE: capability.h.
const CAP_SYS_RESOURCE: u32 = 24;

/// Podman with a storage of the scenario's own and the shared images.
pub struct Podman<'h> {
    host: &'h Host,
    runtime: Runtime,
}

impl<'h> Podman<'h> {
    /// Podman with the scenario's runtime.
    pub fn new(host: &'h Host) -> Result<Podman<'h>> {
        Podman::with(host, host.runtime.clone())
    }

    /// Podman with another runtime, to compare with.
    pub fn with(host: &'h Host, runtime: Runtime) -> Result<Podman<'h>> {
        if in_search_path("podman").is_none() {
            return Err(Skip("podman is not installed".to_owned()).into());
        }
        let podman = Podman { host, runtime };
        podman.configure()?;
        Ok(podman)
    }

    /// Any podman command.
    pub fn command<A: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Command<'h>> {
        let arguments: Vec<String> = arguments
            .into_iter()
            .map(|a| a.as_ref().to_owned())
            .collect();
        for image in [BUSYBOX, DEBIAN, APPLICATIONS] {
            if arguments.iter().any(|argument| argument == image) {
                images::load(self.host, image)?;
            }
        }
        let command = self.command_as_configured(["--runtime"]);
        Ok(command.arg(&self.runtime.path).args(arguments))
    }

    /// A podman command with the runtime that its configuration names.
    pub fn command_as_configured<A: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command<'h> {
        let dir = &self.host.dir;
        let arguments = arguments.into_iter().map(|a| a.as_ref().to_owned());
        self.host
            .command("podman")
            .env("CONTAINERS_CONF", dir.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf"))
            .args(arguments)
    }

    /// `podman run` without a network.
    pub fn run<A: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Command<'h>> {
        self.new_container("run", arguments)
    }

    /// `podman create` without a network.
    pub fn create<A: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Command<'h>> {
        self.new_container("create", arguments)
    }

    /// Runs a container in the background and gives its id.
    pub fn run_detached<A: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        let arguments: Vec<String> = ["--detach".to_owned()]
            .into_iter()
            .chain(arguments.into_iter().map(|a| a.as_ref().to_owned()))
            .collect();
        Ok(self.run(arguments)?.run()?.ok()?.text())
    }

    /// What `podman inspect` says, by a Go template.
    pub fn inspect(&self, container: &str, template: &str) -> Result<String> {
        let found = self
            .command(["inspect", "--format", template, container])?
            .run()?;
        Ok(found.ok()?.text())
    }

    fn new_container<A: AsRef<str>>(
        &self,
        verb: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Command<'h>> {
        let parent = format!("--cgroup-parent=/{}", self.host.cgroup);
        let mut all = vec![verb.to_owned(), "--network=none".to_owned(), parent];
        all.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self.command(all)
    }

    fn configure(&self) -> Result<()> {
        let dir = &self.host.dir;
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"/run/containers/storage\"\n\
                 [storage.options]\nadditionalimagestores = [\"{}\"]\n",
                dir.join("storage").display(),
                self.image_storage()?.display(),
            ),
        )?;
        write("containers.conf", containers_conf(dir)?)
    }

    /// Podman wants the folder of an additional storage to exist.
    fn image_storage(&self) -> Result<std::path::PathBuf> {
        let folder = images::storage(self.host);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }
}

/// Podman asks for limits that only CAP_SYS_RESOURCE may set; a machine
/// without it (a container, some CI) needs lower ones. Where systemd runs, it would log to a
/// journal, whose socket is not in the scenario's `/run`.
fn containers_conf(dir: &Path) -> Result<String> {
    let limits = if has_capability(CAP_SYS_RESOURCE)? {
        ""
    } else {
        "default_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\n"
    };
    Ok(format!(
        "[containers]\nlog_driver = \"k8s-file\"\n{limits}[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
         [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n",
        dir.join("networks").display()
    ))
}

fn has_capability(number: u32) -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = u64::from_str_radix(line.unwrap_or("0").trim(), 16)?;
    Ok(set >> number & 1 == 1)
}

/// A volume argument: `host:container[:options]`.
pub fn volume(host: impl AsRef<OsStr>, container: &str) -> String {
    format!("--volume={}:{container}", host.as_ref().to_string_lossy())
}
