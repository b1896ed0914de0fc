//! A bridge in a network namespace of this process's own, and places that are connected to it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use casemate_linux::namespace::within_new_network;
use nix::sched::{CloneFlags, unshare};

use crate::command;

const NAME: &str = "bridge0";
/// The host's own address on it.
const HOST: &str = "10.88.0.1/24";

/// The bridge. It goes with this process.
pub(super) struct Bridge;

impl Bridge {
    /// Leaves the machine's network for a new one with a bridge.
    pub(super) fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace (needs root)")?;
        ip("link set lo up")?;
        ip(&format!("link add {NAME} type bridge"))?;
        ip(&format!("addr add {HOST} dev {NAME}"))?;
        ip(&format!("link set {NAME} up"))?;
        Ok(Self)
    }

    /// A network namespace with `eth0`, which has that address.
    pub(super) fn connect(&self, name: &str, address: Ipv4Addr) -> Result<Place> {
        let here = std::process::id();
        let port = format!("to-{name}");
        let made = within_new_network(|| -> Result<File> {
            ip("link set lo up")?;
            ip(&format!(
                "link add eth0 type veth peer name {port} netns {here}"
            ))?;
            ip(&format!("addr add {address}/24 dev eth0"))?;
            ip("link set eth0 up")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let place = Place {
            namespace: made.context("a network namespace")??,
        };
        self.plug(&port)?;
        Ok(place)
    }

    /// A tap on the bridge, of which a virtual machine has the other end.
    pub(super) fn tap(&self, name: &str) -> Result<()> {
        ip(&format!("tuntap add dev {name} mode tap vnet_hdr"))?;
        self.plug(name)
    }

    fn plug(&self, port: &str) -> Result<()> {
        ip(&format!("link set {port} master {NAME}"))?;
        ip(&format!("link set {port} up"))
    }
}

/// A network namespace, as long as it is held.
pub(super) struct Place {
    namespace: File,
}

impl Place {
    /// By what others find it.
    pub(super) fn path(&self) -> PathBuf {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.namespace.as_raw_fd()
        )
        .into()
    }
}

fn ip(line: &str) -> Result<()> {
    command::output(Command::new("ip").args(line.split(' '))).map(drop)
}
