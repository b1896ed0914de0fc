//! The lab host's initial root: a shell, and the modules that its disk needs. The distribution's
//! own would look for every disk there is, and take longer than the rest of the boot.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::recipe;
use crate::image::busybox;
use casemate_bench::cpio::{Entry, archive_with};

/// The archive for the kernel whose modules are in `folder` (`/lib/modules/<version>`).
pub(super) fn build(folder: &Path) -> Result<Vec<u8>> {
    let list = folder.join("modules.dep");
    let list = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    let shell = fs::read(busybox::program()?).context("busybox")?;
    let mut modules = Vec::new();
    for path in in_order(&list, recipe::MODULES_OF_THE_DISK) {
        let name = module_name(path).to_owned() + ".ko";
        modules.push((format!("modules/{name}"), name, read(&folder.join(path))?));
    }
    ensure!(!modules.is_empty(), "no module of the disk was found");
    let order: String = modules
        .iter()
        .map(|(_, name, _)| format!("{name}\n"))
        .collect();
    let mut entries = vec![
        Entry::folder("bin"),
        Entry::program("bin/busybox", &shell),
        Entry::folder("root"),
        Entry::folder("modules"),
        Entry::program("modules/order", order.as_bytes()),
    ];
    for (place, _, content) in &modules {
        entries.push(Entry::program(place, content));
    }
    Ok(archive_with(recipe::INIT.as_bytes(), entries))
}

/// The paths of the named modules in the order in which they can be loaded, by the lines of
/// modules.dep(5): what a module needs comes after it, the first to be loaded last. What has no
/// line is built into the kernel.
fn in_order<'a>(list: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let lines: HashMap<&str, (&str, &str)> = list
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needed)| (module_name(path), (path, needed)))
        .collect();
    let mut order = Vec::new();
    for name in wanted {
        let Some((path, needed)) = lines.get(name) else {
            continue;
        };
        for path in needed.split_whitespace().rev().chain([*path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}

/// `virtio_blk` of `kernel/drivers/block/virtio_blk.ko.xz`.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

/// A module, unpacked: newer releases compress them.
fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| path.display().to_string());
    }
    let mut xz = Command::new("xz");
    let unpacked = xz.args(["--decompress", "--stdout"]).arg(path).output();
    let unpacked = unpacked.context("cannot run xz")?;
    ensure!(unpacked.status.success(), "xz: {}", path.display());
    Ok(unpacked.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_loaded_first_and_once() {
        let list = "kernel/a/ring.ko:\nkernel/a/core.ko: kernel/a/ring.ko\n\
                    kernel/b/disk.ko.xz: kernel/a/core.ko kernel/a/ring.ko\n";
        assert_eq!(
            in_order(list, &["core", "absent", "disk"]),
            [
                "kernel/a/ring.ko",
                "kernel/a/core.ko",
                "kernel/b/disk.ko.xz"
            ]
        );
    }
}
