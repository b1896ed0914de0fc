//! How a plugged device leaves.

use std::time::Duration;

use tokio::{sync::broadcast, time::timeout};

use super::{BackEnd, PlugFailure, Result, execute};
use crate::{
    DeviceId, Error,
    qemu::{
        commands::{BlockdevDel, ChardevRemove, DeviceDel, NetdevDel, RemoveFd},
        qmp::{Command, Event, Failure, Qmp},
    },
};

/// How long a guest may take to let a device go: the driver has to stop, and
/// Linux waits some seconds where a button could be pressed a second time.
const UNPLUG_LIMIT: Duration = Duration::from_secs(30);

/// How long before the guest is asked again to let a device go: a request that
/// arrives while it handles another one can be lost (seen under load).
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Asks the guest to let a device go; returns when it has.
pub(super) async fn remove_device(qmp: &Qmp, id: &DeviceId) -> Result<()> {
    let name = id.to_string();
    let mut events = qmp.events();
    match execute(qmp, &DeviceDel { id: &name }).await {
        // The guest has thrown it out already.
        Err(PlugFailure::Command(_, Failure::Missing(_))) => return Ok(()),
        other => other?,
    }
    timeout(UNPLUG_LIMIT, urged_departure(qmp, &mut events, &name))
        .await
        .unwrap_or(Err(PlugFailure::Other(Error::Deadline {
            command: DeviceDel::NAME,
            after: UNPLUG_LIMIT,
        })))
}

/// Waits until a device has left, and asks again for what takes long.
async fn urged_departure(
    qmp: &Qmp,
    events: &mut broadcast::Receiver<Event>,
    name: &str,
) -> Result<()> {
    loop {
        if let Ok(departed) = timeout(ASK_AGAIN, departure(events, name)).await {
            return departed;
        }
        tracing::debug!(device = name, "asked again to leave");
        match execute(qmp, &DeviceDel { id: name }).await {
            Err(PlugFailure::Command(_, Failure::Missing(_))) => return Ok(()),
            // Newer versions of QEMU refuse while the last request may work yet.
            Ok(()) | Err(PlugFailure::Command(_, Failure::Refused(_))) => {}
            Err(failure) => return Err(failure),
        }
    }
}

async fn departure(events: &mut broadcast::Receiver<Event>, name: &str) -> Result<()> {
    loop {
        match events.recv().await {
            Ok(Event::DeviceDeleted { device }) if device == name => return Ok(()),
            Ok(Event::UnplugRefused { device }) if device == name => {
                let reason = "the guest does not let the device go".to_owned();
                let failure = Failure::Refused(reason);
                return Err(PlugFailure::Command(DeviceDel::NAME, failure));
            }
            Err(broadcast::error::RecvError::Closed) => {
                return Err(PlugFailure::Command(DeviceDel::NAME, Failure::Closed));
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
        }
    }
}

/// Takes away what is behind a device.
pub(super) async fn remove_back_end(qmp: &Qmp, id: &DeviceId, back_end: &BackEnd) -> Result<()> {
    let name = id.to_string();
    match back_end {
        BackEnd::Network => execute(qmp, &NetdevDel { id: &name }).await,
        BackEnd::Socket => match execute(qmp, &ChardevRemove { id: &name }).await {
            // QEMU tells that a device has gone before it has let its socket go, and
            // says then that it is busy. It goes with the machine.
            Err(PlugFailure::Command(_, Failure::Refused(reason))) => {
                tracing::debug!(device = %id, %reason, "a socket outlives its device");
                Ok(())
            }
            other => other,
        },
        BackEnd::Block { descriptors } => {
            execute(qmp, &BlockdevDel { node_name: &name }).await?;
            let descriptors = *descriptors;
            execute(qmp, &RemoveFd { descriptors }).await
        }
    }
}
