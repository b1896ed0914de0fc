//! A container goes: out of the guest first, then from the host.

use std::{path::PathBuf, rc::Weak, sync::Arc, time::Duration};

use casemate_hypervisor::{DeviceId, Vm};
use oci_spec::runtime::Hooks;
use tokio::{
    sync::mpsc::UnboundedSender,
    task::{spawn_blocking, spawn_local},
    time::timeout,
};

use super::report;
use crate::{
    agent::{self, Agent},
    hooks,
    key::Key,
    ledger::Ledger,
    owner::{Event, Farewell},
    share::Share,
    state::State,
    timeline::{Timeline, now_ns},
};

/// How long a guest may take to write to a disk what it has kept in memory.
pub(super) const WRITE_BACK_LIMIT: Duration = Duration::from_secs(60);

/// Takes a disk out of the machine, when the guest does not use it any more.
pub(super) async fn unplug(vm: &dyn Vm, disk: &DeviceId) {
    if let Err(error) = vm.unplug(disk).await {
        tracing::warn!(%disk, %error, "a disk stays in the machine");
    }
}

/// What is left to do of a container that its owner has dropped.
pub(crate) struct Remains {
    pub(crate) key: Key,
    /// Its directory.
    pub(crate) directory: PathBuf,
    /// The agent, where the guest lives on and has the container.
    pub(crate) guest: Option<Agent>,
    /// The disk that is in the machine for it.
    pub(crate) disk: Option<(Arc<dyn Vm>, DeviceId)>,
    /// The sandbox's share, which does not wait for this to go.
    pub(crate) share: Weak<Share>,
    /// Hooks, and the state that they are told.
    pub(crate) poststop: Option<(Hooks, State)>,
    pub(crate) farewell: Farewell,
    pub(crate) timeline: Timeline,
}

/// The last steps of a container: the guest lets go, then the host, then the
/// hooks run and the ledger is undone.
pub(crate) fn spawn_removal(mut remains: Remains, events: UnboundedSender<Event>) {
    spawn_local(async move {
        let begin = now_ns();
        leave_guest(&remains).await;
        if remains.guest.is_some() {
            let timeline = &mut remains.timeline;
            timeline.until_now("host", "let the guest let go", begin);
        }
        let begin = now_ns();
        let key = &remains.key;
        if let Some(share) = remains.share.upgrade()
            && let Err(error) = share.remove_container(key.container.as_str())
        {
            tracing::warn!(container = %key, %error, "its files are still in the share");
        }
        if let Some((hooks, state)) = &remains.poststop
            && let Err(error) = hooks::run(
                "poststop",
                hooks.poststop().as_ref(),
                &state.to_oci_json(),
                &state.bundle,
            )
            .await
        {
            tracing::warn!(container = %key, %error, "after delete");
        }
        let directory = remains.directory.clone();
        // A cgroup may be busy for a moment, and others have requests meanwhile.
        let undone = spawn_blocking(move || Ledger::undo(&directory)).await;
        match undone.map_err(std::io::Error::from) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(container = %key, %error, "something is left"),
            Err(error) => tracing::error!(container = %key, %error, "something may be left"),
        }
        let mut timeline = remains.timeline;
        timeline.until_now("host", "undo what the host has", begin);
        report(&events, Event::Removed(remains.farewell, timeline));
    });
}

/// Has the guest let go of a container, and takes its disk away.
async fn leave_guest(remains: &Remains) {
    let Some(agent) = &remains.guest else { return };
    let agent = match remains.disk {
        Some(_) => agent.with_more_time(WRITE_BACK_LIMIT),
        None => agent.clone(),
    };
    let removed = agent.remove_container(&remains.key.container()).await;
    if let (Some((vm, _)), Err(error)) = (&remains.disk, &removed)
        && is_farewell(error)
        && timeout(WRITE_BACK_LIMIT, vm.exited()).await.is_ok()
    {
        return;
    }
    if let Err(error) = removed {
        tracing::warn!(container = %remains.key, %error, "the guest did not remove it");
    }
    if let Some((vm, disk)) = &remains.disk {
        unplug(vm.as_ref(), disk).await;
    }
}

/// What a guest says that is powering off: it lets go of everything as well.
fn is_farewell(error: &agent::Error) -> bool {
    use agent::Error::{Lost, Refused};
    match error {
        Lost { .. } => true,
        Refused { code, .. } => *code == ttrpc::Code::NOT_FOUND,
        _ => false,
    }
}
