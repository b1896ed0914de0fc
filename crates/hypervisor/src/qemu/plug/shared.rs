//! Devices whose back ends are other processes, plugged with a socket to one.

use std::os::fd::{AsFd, OwnedFd};

use serde::Serialize;

use super::{BackEnd, PlugFailure, Result, add_device, execute};
use crate::{
    DeviceId, FileShare, Vsock,
    qemu::{
        command_line::{FILE_SHARE_QUEUE, Seat},
        commands::{
            ChardevAdd, CloseFd, DeviceAdd, FilesProperties, GetFd, SocketBackend, VsockProperties,
        },
        machine::COMMAND_LIMIT,
        qmp::{Command, Qmp},
    },
};

pub(super) async fn plug_files(qmp: &Qmp, id: &DeviceId, share: FileShare) -> Result<BackEnd> {
    let name = id.to_string();
    let properties = FilesProperties {
        chardev: &name,
        tag: &share.tag,
        queue_size: FILE_SHARE_QUEUE,
    };
    plug(qmp, id, "vhost-user-fs-pci", properties, &share.socket).await
}

pub(super) async fn plug_vsock(qmp: &Qmp, id: &DeviceId, vsock: Vsock) -> Result<BackEnd> {
    let name = id.to_string();
    let properties = VsockProperties { chardev: &name };
    let driver = "vhost-user-vsock-pci-non-transitional";
    plug(qmp, id, driver, properties, &vsock.socket).await
}

/// QEMU takes the socket by its name, makes a character device of it, and
/// shakes hands with the back end before it answers.
async fn plug<P: Serialize + Sync>(
    qmp: &Qmp,
    id: &DeviceId,
    driver: &'static str,
    properties: P,
    socket: &OwnedFd,
) -> Result<BackEnd> {
    let name = id.to_string();
    let lend = GetFd { fdname: &name };
    let lent = qmp.execute_with(&lend, socket.as_fd(), COMMAND_LIMIT).await;
    lent.map_err(|failure| PlugFailure::Command(GetFd::NAME, failure))?;
    let back_end = ChardevAdd {
        id: &name,
        backend: SocketBackend::of(&name),
    };
    if let Err(failure) = execute(qmp, &back_end).await {
        let _ = execute(qmp, &CloseFd { fdname: &name }).await;
        return Err(failure);
    }
    let device = DeviceAdd {
        driver,
        id: &name,
        seat: Seat::of(id),
        properties,
    };
    add_device(qmp, id, &device, BackEnd::Socket).await
}
