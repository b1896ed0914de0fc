//! The lab's host as files: a root disk made of Debian packages, its kernel, an initial root and
//! the key of whoever may log in. Built once, and kept in the cache by the digest of its recipe.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{initrd, recipe};
use crate::image::debian;
use crate::{cache, command};

/// How an XZ stream begins: The .xz File Format 1.2.1, section 2.1.1.1.
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];

/// A host that can be booted. Whoever does it leaves the files as they are.
pub(super) struct Image(PathBuf);

impl Image {
    /// The image of this checkout's recipe; to build it takes some minutes.
    pub(super) fn obtain() -> Result<Image> {
        let digest = recipe::digest()?;
        cache::obtain("lab", &digest, |folder| {
            ensure!(
                nix::unistd::geteuid().is_root(),
                "the files of the lab's host have many owners\nhint: run this as root"
            );
            println!("lab: building the host");
            build(folder)
        })
        .map(Image)
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.0.join("root.ext4")
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.0.join("kernel")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.0.join("initrd")
    }

    /// The private key with which root of the host lets one in.
    pub(super) fn key(&self) -> PathBuf {
        self.0.join("key")
    }
}

fn build(folder: &Path) -> Result<()> {
    let root = folder.join("root");
    bootstrap(&root)?;
    make_key(folder, &root)?;
    for (place, content) in recipe::FILES {
        write(&root.join(place), content.as_bytes())?;
    }
    in_root(&root, &["systemctl", "set-default", "multi-user.target"])?;
    in_root(&root, &["systemctl", "preset-all"])?;
    let modules = only_entry(&root.join("lib/modules"))?;
    write(&folder.join("initrd"), &initrd::build(&modules)?)?;
    write(&folder.join("kernel"), &kernel(&root.join("boot"))?)?;
    fs::remove_dir_all(root.join("boot")).context("the root's /boot")?;
    make_disk(&root, &folder.join("root.ext4"))?;
    fs::remove_dir_all(&root).with_context(|| root.display().to_string())
}

fn bootstrap(root: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        // Nobody boots the initial root that the package of the kernel would make.
        .env("INITRD", "No")
        .args(["--quiet", "--variant=minbase", "--format=directory"])
        .arg("--skip=output/dev")
        .arg(format!("--include={}", recipe::packages()));
    for pattern in recipe::exclusions() {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    mmdebstrap.arg(debian::codename()?).arg(root);
    if let Some(sources) = debian::sources() {
        mmdebstrap.arg(sources);
    }
    command::output(&mut mmdebstrap)?;
    Ok(())
}

/// A key of this image's own: it opens nothing else.
fn make_key(folder: &Path, root: &Path) -> Result<()> {
    let key = folder.join("key");
    let mut generate = Command::new("ssh-keygen");
    generate.args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"]);
    command::output(generate.arg(&key))?;
    let public = fs::read(key.with_extension("pub")).context("the public key")?;
    let authorized = root.join("root/.ssh/authorized_keys");
    write(&authorized, &public)?;
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(root.join("root/.ssh"), private).context("root's keys")
}

fn in_root(root: &Path, program: &[&str]) -> Result<()> {
    command::output(Command::new("chroot").arg(root).args(program))?;
    Ok(())
}

/// The kernel as QEMU can start it, which is faster than to have an emulated processor unpack it.
fn kernel(boot: &Path) -> Result<Vec<u8>> {
    let folder = fs::read_dir(boot).with_context(|| boot.display().to_string())?;
    let packed = folder
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("/vmlinuz-"))
        .context("the host has no kernel")?;
    let packed = fs::read(&packed).with_context(|| packed.display().to_string())?;
    match packed.windows(XZ.len()).position(|bytes| bytes == XZ) {
        Some(start) => unpack(packed[start..].to_vec()),
        // Packed in another way: then it is unpacked at every boot.
        None => Ok(packed),
    }
}

fn unpack(stream: Vec<u8>) -> Result<Vec<u8>> {
    let mut xz = Command::new("xz")
        // The kernel's image goes on after the stream.
        .args(["--decompress", "--stdout", "--single-stream"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run xz")?;
    let mut input = xz.stdin.take().context("xz has an input")?;
    // It stops reading at the end of the stream, which is not the end of what there is.
    let feeder = std::thread::spawn(move || std::io::Write::write_all(&mut input, &stream));
    let output = xz.wait_with_output().context("xz")?;
    drop(feeder.join());
    ensure!(
        output.status.success(),
        "xz cannot unpack the host's kernel"
    );
    Ok(output.stdout)
}

fn make_disk(root: &Path, disk: &Path) -> Result<()> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-t", "ext4", "-L", "lab-root", "-d"])
        .arg(root)
        // Every boot begins with the same disk, so nothing is worth a journal.
        .args(["-O", "^has_journal", "-E", "root_owner=0:0", "-F"])
        .arg(disk)
        .arg(format!("{}M", recipe::DISK_MIB));
    command::output(&mut mke2fs)?;
    Ok(())
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let entry = entries.next().context("the host has no modules")??;
    Ok(entry.path())
}

fn write(place: &Path, content: &[u8]) -> Result<()> {
    let folder = place.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::write(place, content).with_context(|| place.display().to_string())
}
