//! Devices that come and go while the machine runs, each in a PCI Express root
//! port of its own.

mod departure;
mod shared;

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
};

use serde::Serialize;
use tokio::sync::Mutex;

use self::departure::{remove_back_end, remove_device};
use super::{
    command_line::Seat,
    commands::{
        AddFd, BlockDriver, BlockdevAdd, CardProperties, CloseFd, DeviceAdd, Discard,
        DiskProperties, FileDriver, FileNode, GetFd, NetdevAdd, RemoveFd,
    },
    machine::COMMAND_LIMIT,
    qmp::{Command, Failure, Qmp},
};
use crate::{BlockDevice, Device, DeviceId, Error, NetworkDevice, device::Place};

/// The machine's hotplug slots.
pub(super) struct Slots(Mutex<State>);

struct State {
    /// With the ids of the devices that sit in them.
    slots: Vec<Option<Plugged>>,
    /// The slots that machines for templates have of their own.
    own: Option<Own>,
    next_serial: u64,
}

/// Slots for what every sandbox has.
#[derive(Default)]
struct Own {
    file_share: Option<Plugged>,
    vsock: Option<Plugged>,
}

struct Plugged {
    id: DeviceId,
    back_end: BackEnd,
}

/// What QEMU holds for a device besides the device.
enum BackEnd {
    Network,
    Block {
        descriptors: u64,
    },
    /// A socket to another process.
    Socket,
}

/// Why a device was not plugged or unplugged.
pub(super) enum PlugFailure {
    Command(&'static str, Failure),
    Other(Error),
}

impl From<Error> for PlugFailure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

type Result<T> = std::result::Result<T, PlugFailure>;

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        Self(Mutex::new(State {
            slots: (0..count).map(|_| None).collect(),
            own: None,
            next_serial: 0,
        }))
    }

    /// Those of a machine for templates, which was started with sockets or without.
    pub(super) fn of_template(count: u32, vsock: bool) -> Self {
        let mut slots = Self::new(count);
        slots.0.get_mut().own = Some(Own {
            file_share: None,
            vsock: vsock.then_some(Plugged {
                id: DeviceId::VSOCK,
                back_end: BackEnd::Socket,
            }),
        });
        slots
    }

    pub(super) async fn plug(&self, qmp: &Qmp, device: Device) -> Result<DeviceId> {
        let mut state = self.0.lock().await;
        let id = state.free(&device)?;
        let back_end = match device {
            Device::Network(card) => plug_network(qmp, &id, card).await?,
            Device::Block(disk) => plug_block(qmp, &id, disk).await?,
            Device::FileShare(share) => shared::plug_files(qmp, &id, share).await?,
            Device::Vsock(vsock) => shared::plug_vsock(qmp, &id, vsock).await?,
        };
        if let Some(slot) = state.slot(&id) {
            *slot = Some(Plugged {
                id: id.clone(),
                back_end,
            });
        }
        Ok(id)
    }

    pub(super) async fn unplug(&self, qmp: &Qmp, id: &DeviceId) -> Result<()> {
        let mut state = self.0.lock().await;
        let slot = state.slot(id);
        let slot = slot.filter(|slot| slot.as_ref().is_some_and(|device| device.id == *id));
        let Some(slot) = slot else {
            return Err(Error::NoDevice { id: id.to_string() }.into());
        };
        remove_device(qmp, id).await?;
        // The guest has let go: from here on the slot is free.
        if let Some(device) = slot.take() {
            remove_back_end(qmp, id, &device.back_end).await?;
        }
        Ok(())
    }

    /// A device that is plugged, if there is one.
    pub(super) async fn any(&self) -> Option<DeviceId> {
        let state = self.0.lock().await;
        let own = state.own.as_ref();
        let own = own.map(|own| [&own.file_share, &own.vsock]);
        let mut all = state.slots.iter().chain(own.into_iter().flatten());
        all.find_map(|slot| slot.as_ref().map(|device| device.id.clone()))
    }
}

impl State {
    /// The id of a device that is to be plugged.
    fn free(&mut self, device: &Device) -> std::result::Result<DeviceId, Error> {
        let own = self.own.as_ref().and_then(|own| match device {
            Device::FileShare(_) => Some((DeviceId::FILE_SHARE, &own.file_share)),
            Device::Vsock(_) => Some((DeviceId::VSOCK, &own.vsock)),
            Device::Network(_) | Device::Block(_) => None,
        });
        if let Some((id, slot)) = own {
            return match slot {
                None => Ok(id),
                Some(_) => Err(Error::NoFreeSlot { slots: 1 }),
            };
        }
        let slots = self.slots.len() as u32;
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.ok_or(Error::NoFreeSlot { slots })? as u32;
        let serial = self.next_serial;
        self.next_serial += 1;
        Ok(DeviceId(Place::Slot { slot, serial }))
    }

    fn slot(&mut self, id: &DeviceId) -> Option<&mut Option<Plugged>> {
        match id.0 {
            Place::FileShare => self.own.as_mut().map(|own| &mut own.file_share),
            Place::Vsock => self.own.as_mut().map(|own| &mut own.vsock),
            Place::Slot { slot, .. } => self.slots.get_mut(slot as usize),
        }
    }
}

async fn plug_network(qmp: &Qmp, id: &DeviceId, card: NetworkDevice) -> Result<BackEnd> {
    let name = id.to_string();
    if card.tap_queues.is_empty() {
        let problem = "a network card needs a queue";
        return Err(Error::Device { problem }.into());
    }
    let queues = lend_queues(qmp, &name, &card.tap_queues).await?;
    let back_end = NetdevAdd {
        kind: "tap",
        id: &name,
        fds: queues.join(":"),
    };
    if let Err(failure) = execute(qmp, &back_end).await {
        for queue in &queues {
            let _ = execute(qmp, &CloseFd { fdname: queue }).await;
        }
        return Err(failure);
    }
    let device = DeviceAdd {
        driver: "virtio-net-pci-non-transitional",
        id: &name,
        seat: Seat::of(id),
        properties: CardProperties {
            netdev: &name,
            mac: card.mac.to_string(),
            // It does not boot from the network.
            romfile: "",
            mq: queues.len() > 1,
            // For each queue in each direction, for control, and for changes.
            vectors: 2 * queues.len() as u32 + 2,
        },
    };
    add_device(qmp, id, &device, BackEnd::Network).await
}

/// Hands the queues to QEMU, under names that the back end takes them by.
async fn lend_queues(qmp: &Qmp, name: &str, queues: &[OwnedFd]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (index, queue) in queues.iter().enumerate() {
        let fdname = format!("{name}-{index}");
        let lend = GetFd { fdname: &fdname };
        let lent = qmp.execute_with(&lend, queue.as_fd(), COMMAND_LIMIT).await;
        lent.map_err(|failure| PlugFailure::Command(GetFd::NAME, failure))?;
        names.push(fdname);
    }
    Ok(names)
}

async fn plug_block(qmp: &Qmp, id: &DeviceId, disk: BlockDevice) -> Result<BackEnd> {
    let name = id.to_string();
    let driver = file_driver(&disk.image)?;
    let lent = qmp
        .execute_with(&AddFd {}, disk.image.as_fd(), COMMAND_LIMIT)
        .await
        .map_err(|failure| PlugFailure::Command(AddFd::NAME, failure))?;
    let descriptors = lent.fdset_id;
    let node = BlockdevAdd {
        driver: BlockDriver::Raw,
        node_name: &name,
        read_only: disk.read_only,
        discard: Discard::Unmap,
        file: FileNode {
            driver,
            filename: format!("/dev/fdset/{descriptors}"),
        },
    };
    if let Err(failure) = execute(qmp, &node).await {
        let _ = execute(qmp, &RemoveFd { descriptors }).await;
        return Err(failure);
    }
    let device = DeviceAdd {
        driver: "virtio-blk-pci-non-transitional",
        id: &name,
        seat: Seat::of(id),
        properties: DiskProperties {
            drive: &name,
            serial: &disk.serial,
        },
    };
    add_device(qmp, id, &device, BackEnd::Block { descriptors }).await
}

fn file_driver(image: &File) -> Result<FileDriver> {
    let kind = image.metadata().map(|metadata| metadata.file_type());
    match kind {
        Ok(kind) if kind.is_file() => Ok(FileDriver::File),
        Ok(kind) if kind.is_block_device() => Ok(FileDriver::HostDevice),
        _ => Err(PlugFailure::Other(Error::Device {
            problem: "a disk is a regular file or a block device",
        })),
    }
}

/// Adds the device in front of its back end, or takes the back end away again.
async fn add_device<P: Serialize + Sync>(
    qmp: &Qmp,
    id: &DeviceId,
    device: &DeviceAdd<'_, P>,
    back_end: BackEnd,
) -> Result<BackEnd> {
    match execute(qmp, device).await {
        Ok(()) => Ok(back_end),
        Err(failure) => {
            let _ = remove_back_end(qmp, id, &back_end).await;
            Err(failure)
        }
    }
}

async fn execute<C: Command>(qmp: &Qmp, command: &C) -> Result<()> {
    let answer = qmp.execute(command, COMMAND_LIMIT).await;
    answer
        .map(drop)
        .map_err(|failure| PlugFailure::Command(C::NAME, failure))
}
