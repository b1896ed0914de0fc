//! The disk with what is tested: a small copy of the checkout, which the host mounts where the
//! checkout is here, since that is where the suite looks for its things.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{command, workspace};

/// Room on the disk beside the files, in KiB.
const SPARE_KIB: u64 = 32 * 1024;

/// Makes the disk `place`; `folder` is for the work.
pub(super) fn build(folder: &Path, place: &Path) -> Result<()> {
    let tree = folder.join("payload");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| tree.display().to_string())?;
    }
    let checkout = workspace::root();
    copy(&runtime()?, &tree.join("target/release/casemate"))?;
    for file in [
        "build/guest/vmlinux",
        "build/guest/initrd.cpio",
        "build/images/busybox.tar",
        "build/images/pause.tar",
    ] {
        copy(&checkout.join(file), &tree.join(file))
            .context("hint: cargo xtask guest && cargo xtask image busybox pause")?;
    }
    let suite = tree.join("e2e");
    copy(&suite_program()?, &suite)?;
    // Symbols are nine tenths of it.
    command::output(Command::new("strip").arg(&suite))?;
    // The host has a containerd of its own, which the suite would have unpacked.
    fs::create_dir_all(tree.join("build/clients/docker20"))?;
    symlink("/usr", tree.join("build/clients/docker20/usr")).context("the host's containerd")?;
    let facts = tree.join("facts");
    fs::write(&facts, include_str!("host/facts")).context("the script of the facts")?;
    fs::set_permissions(&facts, fs::Permissions::from_mode(0o755))?;
    disk(&tree, place)?;
    fs::remove_dir_all(&tree).with_context(|| tree.display().to_string())
}

/// The lines of the host's shell that put everything into its place.
pub(super) fn mount() -> String {
    let checkout = workspace::root().display();
    format!(
        "set -e\n\
         mkdir -p '{checkout}' /usr/local/lib/casemate\n\
         mount -o ro /dev/vdb '{checkout}'\n\
         install -m 755 '{checkout}/target/release/casemate' /usr/local/bin/casemate\n\
         ln -sf casemate /usr/local/bin/containerd-shim-casemate-v2\n\
         install -m 644 '{checkout}'/build/guest/* /usr/local/lib/casemate/\n\
         modprobe kvm_amd || true\n"
    )
}

/// The runtime: what the suite would take.
fn runtime() -> Result<PathBuf> {
    let named = std::env::var_os("CASEMATE_BIN").map(PathBuf::from);
    let program = named.unwrap_or_else(|| target().join("release/casemate"));
    ensure!(
        program.is_file(),
        "{} is not there\nhint: cargo build --release, or set CASEMATE_BIN",
        program.display()
    );
    Ok(program)
}

fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    workspace::root().join(named.unwrap_or_else(|| "target".into()))
}

/// The program of the end-to-end tests, built if need be.
fn suite_program() -> Result<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace::root()).args([
        "test",
        "--package=casemate-e2e",
        "--test=e2e",
        "--no-run",
        "--message-format=json",
    ]);
    let told = command::output(&mut cargo)?;
    told.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "e2e")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no program of the end-to-end tests")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn disk(tree: &Path, place: &Path) -> Result<()> {
    let used = command::output(Command::new("du").args(["--summarize", "-k"]).arg(tree))?;
    let used: u64 = used
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .context("du names no size")?;
    // What was there may be larger, and its end would stay.
    let _ = fs::remove_file(place);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-t", "ext4", "-L", "lab-payload", "-F", "-d"])
        .arg(tree)
        .args(["-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0"])
        .arg(place)
        .arg(format!("{}k", used + used / 16 + SPARE_KIB));
    command::output(&mut mke2fs)?;
    Ok(())
}
