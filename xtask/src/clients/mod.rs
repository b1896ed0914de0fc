//! Clients that the end-to-end tests start by themselves, and what else they need in more than
//! one version: unpacked beside the system, never installed over it, and from more than one
//! release, since engines differ in what they ask of a runtime.

mod archive;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{cache, command, workspace};
use archive::Archive;

/// An engine: under which name the tests find it, and the packages that it is made of.
struct Engine {
    name: &'static str,
    /// The release whose archive has it. Its packages must run with the C library of this one.
    release: &'static str,
    /// The engine itself, the containerd that it starts, its init, and what of the command line
    /// has packages of its own there.
    packages: &'static [&'static str],
    /// What must run here, below `usr`.
    programs: &'static [&'static str],
    /// The oldest major version that is what the tests mean by the name.
    oldest: u32,
    /// Whether the tests are not worth much without it.
    required: bool,
}

const DOCKER: &[&str] = &["sbin/dockerd", "bin/docker", "bin/containerd"];

const ENGINES: [Engine; 4] = [
    // Has a network made by a prestart hook.
    Engine {
        name: "docker20",
        release: "bookworm",
        packages: &["docker.io", "containerd", "tini"],
        programs: DOCKER,
        oldest: 20,
        required: true,
    },
    // Attaches networks between create and start.
    Engine {
        name: "docker28",
        release: "forky",
        packages: &[
            "docker.io",
            "docker-cli",
            "docker-buildx",
            "containerd",
            "tini-static",
        ],
        programs: DOCKER,
        oldest: 28,
        required: false,
    },
    // The containerd between those two, with which most clusters run.
    Engine {
        name: "containerd17",
        release: "trixie",
        packages: &["containerd"],
        programs: &["bin/containerd"],
        oldest: 1,
        required: false,
    },
    // The newest virtual machine monitor that is made for this release, beside its own, which is
    // the oldest that will do.
    Engine {
        name: "qemu10",
        release: "bookworm-backports",
        packages: &[
            "qemu-system-x86",
            "qemu-system-data",
            "qemu-system-common",
            "seabios",
        ],
        programs: &["bin/qemu-system-x86_64"],
        oldest: 10,
        required: false,
    },
];

/// Unpacks what is not there yet, and links it as `build/clients/<name>`.
pub(crate) fn run() -> Result<()> {
    fs::create_dir_all(workspace::build("clients"))?;
    for engine in &ENGINES {
        let result = provide(engine).with_context(|| engine.name);
        match result {
            Err(error) if engine.required => return Err(error),
            Err(error) => miss(engine, &one_line(&error))?,
            Ok(entry) => link(&entry, engine.name)?,
        }
    }
    Ok(())
}

/// The cache's folder with the engine. Between two updates of the lists the archive may replace
/// what they name.
fn provide(engine: &Engine) -> Result<PathBuf> {
    let archive = Archive::of(engine.release)?;
    obtain(engine, &archive).or_else(|error| {
        archive.update().map_err(|_| error)?;
        obtain(engine, &archive)
    })
}

fn obtain(engine: &Engine, archive: &Archive) -> Result<PathBuf> {
    let mut ingredients = cache::Ingredients::default();
    for package in engine.packages {
        ingredients.add(package, archive.candidate(package)?);
    }
    let version = archive.candidate(engine.packages[0])?;
    ensure!(
        major(&version) >= Some(engine.oldest),
        "the archive has {version}, and {} or newer is meant",
        engine.oldest
    );
    let entry = format!("{}-{}", engine.name, ingredients.digest());
    cache::obtain("clients", &entry, |folder| {
        println!("{}: fetching {}", engine.name, engine.packages.join(", "));
        unpack(archive, engine.packages, folder)?;
        // They may want a newer C library than this release has.
        for program in engine.programs {
            let program = folder.join("usr").join(program);
            command::output(Command::new(program).arg("--version"))?;
        }
        Ok(())
    })
}

/// The first number of a package's version, after its epoch: deb-version(7).
fn major(version: &str) -> Option<u32> {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.split('.').next()?.parse().ok()
}

fn unpack(archive: &Archive, packages: &[&str], folder: &Path) -> Result<()> {
    let work = folder.join("work");
    fs::create_dir(&work)?;
    archive.download(packages, &work)?;
    for package in fs::read_dir(&work)? {
        let mut extract = Command::new("dpkg-deb");
        extract.arg("--extract").arg(package?.path()).arg(folder);
        command::output(&mut extract)?;
    }
    Ok(fs::remove_dir_all(&work)?)
}

fn link(entry: &Path, name: &str) -> Result<()> {
    let place = place(name);
    remove(&place)?;
    remove(&reason(name))?;
    symlink(entry, &place).with_context(|| place.display().to_string())?;
    println!("{}", place.display());
    Ok(())
}

/// Leaves the reason to the tests, which skip with it what needs the engine. One that was
/// unpacked earlier goes on serving.
fn miss(engine: &Engine, why: &str) -> Result<()> {
    println!("{why}");
    if place(engine.name).exists() {
        return Ok(());
    }
    let file = reason(engine.name);
    fs::write(&file, why).with_context(|| file.display().to_string())
}

/// What programs say in more lines is one reason.
fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

fn place(name: &str) -> PathBuf {
    workspace::build("clients").join(name)
}

fn reason(name: &str) -> PathBuf {
    workspace::build("clients").join(format!("{name}.missing"))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_versions() {
        assert_eq!(major("28.5.2+dfsg4-5"), Some(28));
        assert_eq!(major("5:20.10.24~3-0"), Some(20));
        assert_eq!(major("unknown"), None);
    }
}
