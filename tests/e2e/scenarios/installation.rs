//! `casemate install`: what a client reads once it has been told of the runtime.

use std::fs;

use anyhow::{Context, Result, ensure};
use casemate_e2e::docker::Release;
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::{Host, Podman, Scenario, scenarios};

/// Docker's is with the engines: one that runs is told and forgets again.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let all = scenarios![podman, containerd16, containerd21, containerd21_imports];
    let vm_only = |scenario: Scenario| scenario.only_vm("runc comes installed");
    all.into_iter().map(vm_only).collect()
}

/// A client finds the runtime by its name once it is installed there.
fn podman(host: &Host) -> Result<()> {
    let etc = host.new_folder("etc")?;
    let folder = etc.to_string_lossy().into_owned();
    let call = |flags: &[&str]| {
        let words = [&["install", "podman", "--etc", &folder], flags].concat();
        host.oci(&words).run()?.ok()
    };
    let file = etc.join("containers/containers.conf.d/50-casemate.conf");
    call(&["--dry-run"])?;
    ensure!(!file.exists());
    call(&["--default"])?;
    contains(&call(&["--default"])?.text(), "installed already")?;
    let podman = Podman::new(host)?;
    let info = podman
        .command_as_configured([
            "info",
            "--format",
            "{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}}",
        ])
        .env("CONTAINERS_CONF", &file)
        .run()?
        .ok()?;
    let path = std::fs::canonicalize(&host.runtime.path)?;
    ensure!(
        info.text() == format!("casemate {}", path.display()),
        "{info}"
    );
    call(&["--undo"])?;
    ensure!(!file.exists());
    contains(&call(&["--undo"])?.text(), "not installed")
}

/// containerd's own reading of a configuration: what it works by, defaults and imports included.
struct Containerd<'h> {
    host: &'h Host,
    program: String,
    etc: String,
    bin: String,
}

impl<'h> Containerd<'h> {
    fn new(host: &'h Host, release: Release) -> Result<Self> {
        let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        Ok(Self {
            host,
            program: path(release.programs()?.join("usr/bin/containerd")),
            etc: path(host.new_folder("etc")?),
            bin: path(host.new_folder("bin")?),
        })
    }

    fn file(&self) -> String {
        format!("{}/containerd/config.toml", self.etc)
    }

    fn write(&self, text: &str) -> Result<()> {
        fs::create_dir_all(format!("{}/containerd", self.etc))?;
        Ok(fs::write(self.file(), text)?)
    }

    fn install(&self, flags: &[&str]) -> Result<String> {
        let words = [
            "install",
            "containerd",
            "--etc",
            &self.etc,
            "--bin",
            &self.bin,
        ];
        let told = self.host.oci(&[&words, flags].concat());
        // The version of a new file is that of the containerd which is found.
        let folder = self.program.trim_end_matches("/containerd");
        let path = format!("{folder}:/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(told.env("PATH", path).run()?.ok()?.text())
    }

    /// The lines of the configuration without indentation, quotes of one kind.
    fn reads(&self) -> Result<String> {
        let file = self.file();
        let dump = self.host.command(&self.program);
        let dump = dump
            .args(["--config", &file, "config", "dump"])
            .run()?
            .ok()?;
        let lines = dump.text().replace('\'', "\"");
        Ok(lines
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect())
    }

    /// The lines of the table whose name ends so.
    fn table(&self, name: &str) -> Result<String> {
        let dump = self.reads()?;
        let end = format!("{name}]\n");
        let begin = dump
            .find(&end)
            .with_context(|| format!("{name}:\n{dump}"))?
            + end.len();
        let table = &dump[begin..];
        Ok(table[..table.find("\n[").unwrap_or(table.len())].to_owned())
    }

    fn knows_the_runtime(&self) -> Result<()> {
        let ours = self.table("containerd.runtimes.casemate")?;
        contains(&ours, "runtime_type = \"io.containerd.casemate.v2\"\n")?;
        contains(
            &ours,
            "pod_annotations = [\"casemate.io/*\", \"io.katacontainers.*\"]\n",
        )?;
        contains(&ours, "privileged_without_host_devices = true\n")?;
        let runc = self.table("containerd.runtimes.runc")?;
        contains(&runc, "runtime_type = \"io.containerd.runc.v2\"\n")
    }
}

fn containerd16(host: &Host) -> Result<()> {
    containerd(host, Release::V20)
}

fn containerd21(host: &Host) -> Result<()> {
    containerd(host, Release::V28)
}

/// A containerd without a configuration, and with the one that it prints itself.
fn containerd(host: &Host, release: Release) -> Result<()> {
    let containerd = Containerd::new(host, release)?;
    let link = format!("{}/containerd-shim-casemate-v2", containerd.bin);
    let file = containerd.file();
    contains(&containerd.install(&["--dry-run"])?, "runtimes.casemate]")?;
    ensure!(fs::metadata(&file).is_err() && fs::symlink_metadata(&link).is_err());

    contains(&containerd.install(&[])?, "restart containerd")?;
    contains(&containerd.install(&[])?, "installed already")?;
    containerd.knows_the_runtime()?;
    ensure!(fs::canonicalize(&link)? == fs::canonicalize(&host.runtime.path)?);
    containerd.install(&["--undo"])?;
    ensure!(fs::metadata(&file).is_err() && fs::symlink_metadata(&link).is_err());
    contains(&containerd.install(&["--undo"])?, "not installed")?;

    let printed = host
        .command(&containerd.program)
        .args(["config", "default"]);
    let before = printed.run()?.ok()?.text() + "\n# The end.\n";
    containerd.write(&before)?;
    contains(&containerd.install(&["--default"])?, "hostNetwork")?;
    containerd.knows_the_runtime()?;
    contains(
        &containerd.reads()?,
        "default_runtime_name = \"casemate\"\n",
    )?;
    containerd.install(&["--undo"])?;
    ensure!(fs::read_to_string(&file)? == before);

    containerd.write("disabled_plugins = [\"cri\"]\n")?;
    let words = ["install", "containerd", "--etc", &containerd.etc];
    let refused = host.oci(&words).run()?.exits(1)?;
    contains(&one_clear_line(&refused)?, "containerd config default")
}

/// Where files are imported, ours is one of them: containerd 2 joins tables.
fn containerd21_imports(host: &Host) -> Result<()> {
    let containerd = Containerd::new(host, Release::V28)?;
    let folder = format!("{}/containerd/conf.d", containerd.etc);
    let before = format!(
        "version = 3\nimports = [\"{folder}/*.toml\"]\n\
         [plugins.\"io.containerd.cri.v1.runtime\"]\nmax_container_log_line_size = 77\n"
    );
    containerd.write(&before)?;
    containerd.install(&[])?;
    ensure!(fs::read_to_string(containerd.file())? == before);
    containerd.knows_the_runtime()?;
    contains(&containerd.reads()?, "max_container_log_line_size = 77\n")?;
    containerd.install(&["--undo"])?;
    ensure!(fs::read_dir(&folder)?.next().is_none());
    Ok(())
}
