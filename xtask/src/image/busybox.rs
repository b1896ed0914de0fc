//! The smallest useful image: Debian's static busybox and the files programs expect in `/etc`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Recipe, oci};
use crate::{cache, command};

const PACKAGE: &str = "busybox-static";

const FOLDERS: &[&str] = &[
    "bin",
    "dev",
    "etc",
    "home",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr/bin",
    "usr/sbin",
    "var/spool",
    "var/tmp",
];

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
         www-data:x:33:33:www-data:/var/www:/bin/false\n\
         nobody:x:65534:65534:nobody:/home:/bin/false\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n",
    ),
    ("etc/shells", "/bin/sh\n"),
];

pub(super) fn recipe() -> Result<Recipe> {
    named("busybox", &["/bin/sh"])
}

/// What holds the namespaces of a pod for runtimes that run it as any other container.
pub(super) fn pause() -> Result<Recipe> {
    named("pause", &["/bin/sleep", "2147483647"])
}

fn named(name: &'static str, command: &'static [&'static str]) -> Result<Recipe> {
    Ok(Recipe {
        name,
        ingredients: format!("{PACKAGE} {} {FOLDERS:?} {FILES:?}", candidate()?),
        layer,
        command,
    })
}

/// The program itself, fetched once: the machine's own may be another or none.
pub(crate) fn program() -> Result<PathBuf> {
    let mut ingredients = cache::Ingredients::default();
    ingredients.add(PACKAGE, candidate()?);
    let entry = cache::obtain("busybox", &ingredients.digest(), |folder| {
        let work = tempfile::tempdir()?;
        fs::copy(unpack(work.path())?, folder.join("busybox"))?;
        Ok(())
    })?;
    Ok(entry.join("busybox"))
}

/// The version of the package that the archive has for this release.
fn candidate() -> Result<String> {
    let policy = command::output(
        Command::new("apt-cache")
            .env("LC_ALL", "C")
            .args(["policy", PACKAGE]),
    )?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "));
    let version = version.filter(|version| *version != "(none)");
    Ok(version
        .with_context(|| format!("apt knows no {PACKAGE}\nhint: apt-get update"))?
        .to_string())
}

fn layer(work: &Path) -> Result<PathBuf> {
    let root = work.join("root");
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    for folder in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o1777))?;
    }
    for (path, text) in FILES {
        fs::write(root.join(path), text)?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(program()?, &busybox)?;
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))?;
    link_applets(&busybox, &root)?;
    let layer = work.join("layer.tar");
    oci::pack(&root, &["."], &layer)?;
    Ok(layer)
}

/// Fetches the package and takes the program out of it: installing it would push the
/// machine's own busybox away.
fn unpack(work: &Path) -> Result<PathBuf> {
    command::output(Command::new("apt-get").current_dir(work).args([
        "--quiet=2",
        "download",
        PACKAGE,
    ]))?;
    let package = fs::read_dir(work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    let unpacked = work.join("package");
    command::output(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(&unpacked),
    )?;
    // Releases differ in whether /bin is a folder of its own.
    ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|place| unpacked.join(place))
        .find(|path| path.is_file())
        .with_context(|| format!("{PACKAGE} holds no busybox"))
}

fn link_applets(busybox: &Path, root: &Path) -> Result<()> {
    let applets = command::output(Command::new(busybox).arg("--list-full"))?;
    for applet in applets.lines() {
        let place = root.join(applet);
        if !place.exists() {
            fs::create_dir_all(place.parent().context("an applet is in a folder")?)?;
            symlink("/bin/busybox", &place).with_context(|| format!("{}", place.display()))?;
        }
    }
    Ok(())
}
