//! A bare QEMU machine with the kernel and the options of a sandbox, and a tap on the bridge.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};

use super::bridge::Bridge;
use super::tools::Tools;
use crate::Subject;
use crate::cpio::{self, Entry};
use crate::machine::{Bare, Machine};

const TAP: &str = "tap0";

/// It ends when this is dropped.
pub(super) struct Guest {
    _machine: Machine,
}

impl Guest {
    /// Boots it; it serves the measurements at `address` soon.
    pub(super) fn start(
        subject: &Subject,
        tools: &Tools,
        bridge: &Bridge,
        address: Ipv4Addr,
        folder: &Path,
    ) -> Result<Self> {
        bridge.tap(TAP)?;
        let initrd = archive(tools, address)?;
        let bare = Bare::new(subject, folder.join("bare.cpio"), &initrd)?;
        let back_end = format!("tap,id=net0,ifname={TAP},script=no,downscript=no");
        // As sandboxes have it.
        let card = "virtio-net-pci-non-transitional,netdev=net0,romfile=,mq=off,vectors=4";
        Ok(Self {
            _machine: bare.start(&["-netdev", &back_end, "-device", card])?,
        })
    }
}

/// A root with BusyBox and iperf3, whose init sets up the network and serves.
fn archive(tools: &Tools, address: Ipv4Addr) -> Result<Vec<u8>> {
    let init = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox mount -t devtmpfs dev /dev\n\
         /bin/busybox mount -t proc proc /proc\n\
         /bin/busybox ip link set lo up\n\
         /bin/busybox ip addr add {address}/24 dev eth0\n\
         /bin/busybox ip link set eth0 up\n\
         while :; do /usr/bin/iperf3 --server; done\n"
    );
    let busybox = fs::read(&tools.busybox)?;
    let files = tools.files()?;
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, content)| {
            let name = path.strip_prefix("/").ok().and_then(Path::to_str);
            Ok((name.context("a path in UTF-8")?, content.as_slice()))
        })
        .collect::<Result<_>>()?;
    let mut folders: Vec<&str> = files
        .iter()
        .flat_map(|(name, _)| Path::new(name).ancestors().skip(1))
        .filter_map(Path::to_str)
        .chain(["bin", "proc", "tmp"])
        .filter(|folder| !folder.is_empty())
        .collect();
    // A folder comes before what is in it.
    folders.sort_unstable();
    folders.dedup();
    let mut entries: Vec<Entry<'_>> = folders.into_iter().map(Entry::folder).collect();
    entries.push(Entry::program("bin/busybox", &busybox));
    entries.extend(
        files
            .iter()
            .map(|(name, content)| Entry::program(name, content)),
    );
    Ok(cpio::archive_with(init.as_bytes(), entries))
}
