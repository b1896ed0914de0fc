//! Devices that are plugged into a running machine.

use std::{fmt, fs::File, os::fd::OwnedFd};

use crate::{FileShare, Vsock};

/// A device to be plugged.
#[derive(Debug)]
pub enum Device {
    /// A network card.
    Network(NetworkDevice),
    /// A disk.
    Block(BlockDevice),
    /// Shared files. In the slot that a machine for templates has for them, they
    /// come before the sockets.
    FileShare(FileShare),
    /// Sockets between host and guest. In the slot that a machine for templates
    /// has for them, the guest sees with them what came before.
    Vsock(Vsock),
}

/// A virtio network card.
#[derive(Debug)]
pub struct NetworkDevice {
    /// Queues of one tap device, already set up (TUNSETIFF) by the caller.
    pub tap_queues: Vec<OwnedFd>,
    /// Hardware address that the guest sees.
    pub mac: MacAddress,
}

/// A virtio disk.
#[derive(Debug)]
pub struct BlockDevice {
    /// Raw image or block device, opened for reading, and for writing unless
    /// `read_only`.
    pub image: File,
    /// The guest cannot write.
    pub read_only: bool,
    /// What the guest finds it by: at most 20 bytes of printable ASCII.
    pub serial: String,
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A plugged device of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceId(pub(crate) Place);

/// Where a device sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    FileShare,
    Vsock,
    Slot {
        /// Index of the hotplug slot.
        slot: u32,
        /// Counts the plugged devices of a machine, so that an old id never
        /// means a newer device in the same slot.
        serial: u64,
    },
}

impl DeviceId {
    /// The shared files of a machine for templates, which are plugged. The guest
    /// lets files and sockets go together: what was not taken out then only waits
    /// for that.
    pub const FILE_SHARE: Self = Self(Place::FileShare);
    /// Its sockets.
    pub const VSOCK: Self = Self(Place::Vsock);
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::FileShare => f.write_str("files"),
            Place::Vsock => f.write_str("vsock"),
            Place::Slot { serial, .. } => write!(f, "plug{serial}"),
        }
    }
}
