//! The images the containers are made from, loaded once for all scenarios.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::host::Host;
use crate::runtime::checkout;

/// BusyBox alone: starts fast.
pub const BUSYBOX: &str = "localhost/casemate/busybox:latest";
/// A small Debian with perl-base and capsh.
pub const DEBIAN: &str = "localhost/casemate/debian:latest";
/// nginx, Redis and PostgreSQL, with clients that load them.
pub const APPLICATIONS: &str = "localhost/casemate/applications:latest";

/// BusyBox that sleeps: what the first container of a pod runs.
pub const PAUSE: &str = "localhost/casemate/pause:latest";

/// The archive of an image, made by `cargo xtask image`.
pub(crate) fn archive(image: &str) -> Result<PathBuf> {
    let folder = env::var_os("CASEMATE_E2E_IMAGES").unwrap_or_else(|| "build/images".into());
    let folder = checkout().join(folder);
    let name = image.rsplit('/').next().unwrap_or(image);
    let name = name.split(':').next().unwrap_or(name);
    let path = folder.join(format!("{name}.tar"));
    ensure!(
        path.is_file(),
        "{}: no such file; `cargo xtask image` makes it, or set CASEMATE_E2E_IMAGES",
        path.display()
    );
    Ok(path)
}

/// The storage that holds the images and that podman reads beside its own.
pub(crate) fn storage(host: &Host) -> PathBuf {
    host.shared.join("images")
}

/// Loads `image` into the shared storage unless it is there.
pub(crate) fn load(host: &Host, image: &str) -> Result<()> {
    let archive = archive(image)?;
    let name = archive
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    once(host, &name, || {
        host.command("podman")
            .arg("--root")
            .arg(storage(host))
            .args(["--runroot", "/run/loading", "--tmpdir", "/run/loading/tmp"])
            .args(["--storage-driver", "overlay", "--events-backend", "file"])
            .args(["load", "--quiet", "--input"])
            .arg(&archive)
            .run()?
            .ok()?;
        fs::remove_dir_all("/run/loading").context("/run/loading")
    })
}

/// An archive of the BusyBox image's root file system.
pub(crate) fn rootfs_archive(host: &Host) -> Result<PathBuf> {
    let tree = unpacked(host, BUSYBOX)?;
    let archive = host.shared.join("busybox.tar");
    once(host, "rootfs-archive", || {
        let tar = host.command("tar").arg("-C").arg(&tree);
        tar.arg("-cf").arg(&archive).arg(".").run()?.ok()?;
        Ok(())
    })?;
    Ok(archive)
}

/// A copy of the BusyBox image's root file system.
pub fn copy_rootfs(host: &Host, to: &Path) -> Result<()> {
    let tree = unpacked(host, BUSYBOX)?;
    host.command("cp")
        .arg("-a")
        .arg(&tree)
        .arg(to)
        .run()?
        .ok()?;
    Ok(())
}

/// The image's root file system, for all scenarios: it must not be changed.
pub fn unpacked(host: &Host, image: &str) -> Result<PathBuf> {
    let archive = archive(image)?;
    let name = archive.file_stem().unwrap_or_default();
    let tree = host.shared.join("trees").join(name);
    once(host, &format!("{}.tree", name.to_string_lossy()), || {
        unpack(host, &archive, &tree)
    })?;
    Ok(tree)
}

/// Does `work` in the first process that comes, and makes the others wait.
pub(crate) fn once(host: &Host, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = host.shared.join(format!("{name}.done"));
    let file = File::create(host.shared.join("lock")).context("the lock of what is shared")?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    if !done.exists() {
        work()?;
        File::create(done)?;
    }
    Ok(())
}

/// Unpacks the only layer of an OCI archive: OCI image-layout 1.0.
fn unpack(host: &Host, archive: &Path, tree: &Path) -> Result<()> {
    let layout = tree.with_extension("layout");
    fs::create_dir_all(&layout)?;
    fs::create_dir_all(tree)?;
    extract(host, archive, &layout)?;
    let blob = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor["digest"]
            .as_str()
            .context("a descriptor without digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let read = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let index = read(&layout.join("index.json"))?;
    let manifest = read(&blob(&index["manifests"][0])?)?;
    let layers = manifest["layers"]
        .as_array()
        .context("a manifest without layers")?;
    if layers.len() != 1 {
        bail!(
            "{}: {} layers, and one was expected",
            archive.display(),
            layers.len()
        );
    }
    extract(host, &blob(&layers[0])?, tree)?;
    fs::remove_dir_all(layout).map_err(|error| anyhow!(error))
}

fn extract(host: &Host, archive: &Path, into: &Path) -> Result<()> {
    host.command("tar")
        .arg("-C")
        .arg(into)
        // The names of users are the image's.
        .args(["--numeric-owner", "-xf"])
        .arg(archive)
        .run()?
        .ok()?;
    Ok(())
}
