//! What the lab's host is made of.

use anyhow::Result;

use crate::cache::Ingredients;
use crate::image::debian;

/// The kernel that users have, not the cloud's: with KVM, vhost, VFIO and the drivers of
/// pass-through devices.
const PACKAGES: &[&str] = &[
    "aardvark-dns",
    "catatonit",
    "containerd",
    "containernetworking-plugins",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "iptables",
    "kmod",
    "linux-image-amd64",
    "netavark",
    "nftables",
    "openssh-server",
    "pciutils",
    "podman",
    "procps",
    "qemu-system-x86",
    "runc",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// What is left out, below `/usr/share` and `/lib/modules/<version>/kernel`.
const EXCLUDED_SHARED: &[&str] = &["doc", "info", "iso-codes", "locale", "man"];
const EXCLUDED_MODULES: &[&str] = &[
    "drivers/bluetooth",
    "drivers/comedi",
    "drivers/firewire",
    "drivers/gpu",
    "drivers/hid",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/infiniband",
    "drivers/input",
    "drivers/isdn",
    "drivers/media",
    "drivers/mmc",
    "drivers/mtd",
    "drivers/net/can",
    "drivers/net/ethernet/broadcom",
    "drivers/net/ethernet/cavium",
    "drivers/net/ethernet/chelsio",
    "drivers/net/ethernet/mellanox",
    "drivers/net/ethernet/qlogic",
    "drivers/net/wireless",
    "drivers/scsi",
    "drivers/staging",
    "drivers/usb",
    "drivers/video",
    "net/bluetooth",
    "net/can",
    "net/mac80211",
    "net/wireless",
    "sound",
];

/// What the first program loads to reach the disk; what these need comes with them.
pub(super) const MODULES_OF_THE_DISK: &[&str] =
    &["crc32c_generic", "virtio_pci", "virtio_blk", "ext4"];

/// The first program of the host.
pub(super) const INIT: &str = include_str!("host/init");

/// Files that are written, with their places.
pub(super) const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "lab\n"),
    ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 lab\n"),
    ("etc/fstab", "/dev/vda / ext4 defaults 0 0\n"),
    // Known from the start, so that no boot is a first boot.
    ("etc/machine-id", "1ab1ab1ab1ab1ab1ab1ab1ab1ab1ab1a\n"),
    (
        "etc/systemd/system/lab-network.service",
        include_str!("host/network.service"),
    ),
    (
        "etc/systemd/system-preset/00-lab.preset",
        include_str!("host/00-lab.preset"),
    ),
    (
        "etc/ssh/sshd_config.d/lab.conf",
        include_str!("host/sshd.conf"),
    ),
];

/// The size of the root disk, in MiB; what is free in it takes no room on this machine.
pub(super) const DISK_MIB: u32 = 4096;

/// Raised when the way in which the parts are put together changes.
const FORMAT: &str = "1";

/// Names the image in the cache.
pub(super) fn digest() -> Result<String> {
    let mut all = Ingredients::default();
    all.add("format", FORMAT);
    all.add("release", debian::codename()?);
    all.add("packages", PACKAGES.join(" "));
    all.add("excluded", exclusions().join(" "));
    all.add("modules", MODULES_OF_THE_DISK.join(" "));
    all.add("disk", DISK_MIB.to_string());
    all.add("init", INIT);
    for (place, content) in FILES {
        all.add(place, content);
    }
    Ok(all.digest())
}

/// The packages as mmdebstrap takes them.
pub(super) fn packages() -> String {
    PACKAGES.join(",")
}

/// Patterns of dpkg for what is left out.
pub(super) fn exclusions() -> Vec<String> {
    let shared = EXCLUDED_SHARED
        .iter()
        .map(|folder| format!("/usr/share/{folder}/*"));
    let modules = EXCLUDED_MODULES
        .iter()
        .map(|folder| format!("/lib/modules/*/kernel/{folder}/*"));
    shared.chain(modules).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_needs_is_not_left_out() {
        let needed = ["drivers/virtio", "drivers/block", "fs", "crypto"];
        for folder in EXCLUDED_MODULES {
            assert!(!needed.contains(folder), "{folder}");
        }
        assert_eq!(digest().unwrap().len(), 32);
    }
}
