//! The commands of the QEMU Machine Protocol that are used, as QEMU's
//! qapi/*.json define them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command_line::Seat;
use super::qmp::{Command, Done};

macro_rules! command {
    ($name:literal, $type:ty) => {
        command!($name, $type, Done);
    };
    ($name:literal, $type:ty, $answer:ty) => {
        impl Command for $type {
            const NAME: &'static str = $name;
            type Answer = $answer;
        }
    };
}

/// Ends the negotiation mode that a connection starts in.
#[derive(Serialize)]
pub(super) struct Negotiate {}
command!("qmp_capabilities", Negotiate);

/// Stops the virtual processors.
#[derive(Serialize)]
pub(super) struct Stop {}
command!("stop", Stop);

/// Lets them run again.
#[derive(Serialize)]
pub(super) struct Continue {}
command!("cont", Continue);

/// Names the descriptor that comes with the command.
#[derive(Serialize)]
pub(super) struct GetFd<'a> {
    pub(super) fdname: &'a str,
}
command!("getfd", GetFd<'_>);

/// Closes a named descriptor.
#[derive(Serialize)]
pub(super) struct CloseFd<'a> {
    pub(super) fdname: &'a str,
}
command!("closefd", CloseFd<'_>);

/// Makes the descriptor that comes with the command a file `/dev/fdset/<id>`.
#[derive(Serialize)]
pub(super) struct AddFd {}
command!("add-fd", AddFd, FdSet);

/// Where a descriptor went.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct FdSet {
    pub(super) fdset_id: u64,
}

/// Closes a descriptor once nothing uses it.
#[derive(Serialize)]
pub(super) struct RemoveFd {
    #[serde(rename = "fdset-id")]
    pub(super) descriptors: u64,
}
command!("remove-fd", RemoveFd);

/// Makes the host's side of a network card.
#[derive(Serialize)]
pub(super) struct NetdevAdd<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) id: &'a str,
    /// Names of descriptors, with colons between.
    pub(super) fds: String,
}
command!("netdev_add", NetdevAdd<'_>);

/// Removes it.
#[derive(Serialize)]
pub(super) struct NetdevDel<'a> {
    pub(super) id: &'a str,
}
command!("netdev_del", NetdevDel<'_>);

/// Makes the host's side of a disk.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct BlockdevAdd<'a> {
    pub(super) driver: BlockDriver,
    pub(super) node_name: &'a str,
    pub(super) read_only: bool,
    pub(super) discard: Discard,
    pub(super) file: FileNode,
}
command!("blockdev-add", BlockdevAdd<'_>);

/// A disk image's format. Only raw ones: others name further files.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BlockDriver {
    Raw,
}

/// What becomes of stretches that the guest does not need any more.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Discard {
    /// The host has their space back.
    Unmap,
}

/// A file or device that holds an image.
#[derive(Serialize)]
pub(super) struct FileNode {
    pub(super) driver: FileDriver,
    pub(super) filename: String,
}

/// How QEMU talks to it.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileDriver {
    File,
    HostDevice,
}

/// Removes it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct BlockdevDel<'a> {
    pub(super) node_name: &'a str,
}
command!("blockdev-del", BlockdevDel<'_>);

/// Plugs a device.
#[derive(Serialize)]
pub(super) struct DeviceAdd<'a, P> {
    pub(super) driver: &'static str,
    pub(super) id: &'a str,
    #[serde(flatten)]
    pub(super) seat: Seat,
    #[serde(flatten)]
    pub(super) properties: P,
}

impl<P: Serialize + Sync> Command for DeviceAdd<'_, P> {
    const NAME: &'static str = "device_add";
    type Answer = Done;
}

/// What makes a virtio network card.
#[derive(Serialize)]
pub(super) struct CardProperties<'a> {
    pub(super) netdev: &'a str,
    pub(super) mac: String,
    /// The card's boot program.
    pub(super) romfile: &'static str,
    /// More than one queue.
    pub(super) mq: bool,
    /// Interrupt vectors.
    pub(super) vectors: u32,
}

/// What makes a virtio disk.
#[derive(Serialize)]
pub(super) struct DiskProperties<'a> {
    pub(super) drive: &'a str,
    pub(super) serial: &'a str,
}

/// Asks the guest to let a device go.
#[derive(Serialize)]
pub(super) struct DeviceDel<'a> {
    pub(super) id: &'a str,
}
command!("device_del", DeviceDel<'_>);

/// Makes the connection to a back end.
#[derive(Serialize)]
pub(super) struct ChardevAdd<'a> {
    pub(super) id: &'a str,
    pub(super) backend: SocketBackend<'a>,
}

impl Command for ChardevAdd<'_> {
    const NAME: &'static str = "chardev-add";
    /// What it says of terminals is of no interest.
    type Answer = Done;
}

/// A connected socket, by the name of its descriptor.
#[derive(Serialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub(super) enum SocketBackend<'a> {
    Socket { addr: Address<'a>, server: bool },
}

impl<'a> SocketBackend<'a> {
    pub(super) fn of(descriptor: &'a str) -> Self {
        Self::Socket {
            addr: Address::Fd { str: descriptor },
            server: false,
        }
    }
}

/// Where a socket is.
#[derive(Serialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub(super) enum Address<'a> {
    Fd { str: &'a str },
}

/// Removes it.
#[derive(Serialize)]
pub(super) struct ChardevRemove<'a> {
    pub(super) id: &'a str,
}
command!("chardev-remove", ChardevRemove<'_>);

/// What makes a device of shared files.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct FilesProperties<'a> {
    pub(super) chardev: &'a str,
    pub(super) tag: &'a str,
    pub(super) queue_size: u32,
}

/// What makes a device of sockets.
#[derive(Serialize)]
pub(super) struct VsockProperties<'a> {
    pub(super) chardev: &'a str,
}

/// Says how machines are saved and restored.
#[derive(Serialize)]
pub(super) struct MigrateSetCapabilities<'a> {
    pub(super) capabilities: &'a [Capability],
}
command!("migrate-set-capabilities", MigrateSetCapabilities<'_>);

/// One of the ways.
#[derive(Serialize)]
pub(super) struct Capability {
    capability: &'static str,
    state: bool,
}

impl Capability {
    pub(super) fn on(capability: &'static str) -> Self {
        Self {
            capability,
            state: true,
        }
    }
}

/// Writes the state of a stopped machine to a descriptor.
#[derive(Serialize)]
pub(super) struct Migrate {
    uri: &'static str,
}
command!("migrate", Migrate);

/// Reads the state that a machine waits for from a descriptor.
#[derive(Serialize)]
pub(super) struct MigrateIncoming {
    uri: &'static str,
}
command!("migrate-incoming", MigrateIncoming);

/// The descriptor that was given the name of [`super::migration::STATE`].
const STATE_URI: &str = "fd:state";

impl Migrate {
    pub(super) fn to_fd() -> Self {
        Self { uri: STATE_URI }
    }
}

impl MigrateIncoming {
    pub(super) fn from_fd() -> Self {
        Self { uri: STATE_URI }
    }
}

/// Asks how it went.
#[derive(Serialize)]
pub(super) struct QueryMigrate {}
command!("query-migrate", QueryMigrate, MigrationInfo);

/// How it went.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct MigrationInfo {
    pub(super) error_desc: Option<String>,
}

/// Asks which processors there are and which could be.
#[derive(Serialize)]
pub(super) struct QueryProcessors {}
command!("query-hotpluggable-cpus", QueryProcessors, Vec<Processor>);

/// A processor, or the place of one.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Processor {
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Where it goes.
    pub(super) props: ProcessorPlace,
    /// Given when it is there.
    pub(super) qom_path: Option<String>,
}

/// Where a processor goes: names and numbers, the same for QEMU to take as it gave.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct ProcessorPlace(pub(super) BTreeMap<String, u32>);

/// Adds a processor.
#[derive(Serialize)]
pub(super) struct ProcessorAdd<'a> {
    pub(super) driver: &'a str,
    pub(super) id: &'a str,
    #[serde(flatten)]
    pub(super) place: ProcessorPlace,
}
command!("device_add", ProcessorAdd<'_>);

/// Makes memory that can be added.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct MemoryAdd<'a> {
    pub(super) qom_type: &'static str,
    pub(super) id: &'a str,
    /// In bytes.
    pub(super) size: u64,
    pub(super) share: bool,
}
command!("object-add", MemoryAdd<'_>);

/// Removes it.
#[derive(Serialize)]
pub(super) struct ObjectDel<'a> {
    pub(super) id: &'a str,
}
command!("object-del", ObjectDel<'_>);

/// Adds it to the machine.
#[derive(Serialize)]
pub(super) struct ModuleAdd<'a> {
    pub(super) driver: &'static str,
    pub(super) id: &'a str,
    pub(super) memdev: &'a str,
}
command!("device_add", ModuleAdd<'_>);
