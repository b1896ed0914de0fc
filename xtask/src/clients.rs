//! Clients that the end-to-end tests start by themselves: unpacked beside the system, never
//! installed over it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cache, command, workspace};

/// The Docker engine, the containerd that it starts, its init, and the command line, which some
/// releases have in a package of its own.
const DOCKER: &[&str] = &["docker.io", "containerd", "tini"];
const DOCKER_CLI: &str = "docker-cli";

/// Unpacks what is not there yet, and links it as `build/clients/<name>`.
pub(crate) fn run() -> Result<()> {
    let mut packages: Vec<&str> = DOCKER.to_vec();
    if candidate(DOCKER_CLI)?.is_some() {
        packages.push(DOCKER_CLI);
    }
    let mut ingredients = cache::Ingredients::default();
    for package in &packages {
        let version = candidate(package)?;
        let version =
            version.with_context(|| format!("apt knows no {package}\nhint: apt-get update"))?;
        ingredients.add(package, version);
    }
    let digest = ingredients.digest();
    let entry = cache::obtain("clients", &format!("docker-{digest}"), |folder| {
        println!("docker: fetching {}", packages.join(", "));
        unpack(&packages, folder)
    })?;
    link(&entry, "docker")
}

/// The version of a package that the archive has for this release.
fn candidate(package: &str) -> Result<Option<String>> {
    let mut policy = Command::new("apt-cache");
    policy.env("LC_ALL", "C").args(["policy", package]);
    let text = command::output(&mut policy)?;
    let mut lines = text.lines();
    let version = lines.find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version
        .filter(|version| *version != "(none)")
        .map(str::to_owned))
}

fn unpack(packages: &[&str], folder: &Path) -> Result<()> {
    let work = folder.join("work");
    fs::create_dir(&work)?;
    let mut download = Command::new("apt-get");
    download.current_dir(&work).args(["--quiet=2", "download"]);
    command::output(download.args(packages))?;
    for package in fs::read_dir(&work)? {
        let mut extract = Command::new("dpkg-deb");
        extract.arg("--extract").arg(package?.path()).arg(folder);
        command::output(&mut extract)?;
    }
    Ok(fs::remove_dir_all(&work)?)
}

fn link(entry: &Path, name: &str) -> Result<()> {
    let place = workspace::build("clients").join(name);
    fs::create_dir_all(workspace::build("clients"))?;
    match fs::remove_file(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| place.display().to_string());
        }
        _ => {}
    }
    symlink(entry, &place).with_context(|| place.display().to_string())?;
    println!("{}", place.display());
    Ok(())
}
