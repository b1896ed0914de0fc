//! The machine boots, is watched, and powers off.

use std::{rc::Rc, sync::Arc, time::Duration};

use casemate_hypervisor::{Hypervisor, Vm};
use casemate_protocol::agent as message;
use tokio::{
    sync::mpsc::UnboundedSender,
    task::{JoinHandle, spawn_local},
    time::timeout,
};

use super::{removal::WRITE_BACK_LIMIT, report};
use crate::{
    agent,
    machine::{self, Options, Prepared, Ready},
    owner::Event,
    timeline::{Timeline, now_ns},
};

/// How long a guest may take to power off before its VM is killed.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(2);

/// How long a monitor stays without a container to begin with.
const DESERTION: Duration = Duration::from_secs(30);

/// Boots the machine.
pub(crate) fn spawn_boot(
    options: Options,
    hypervisor: Rc<dyn Hypervisor>,
    events: UnboundedSender<Event>,
) -> JoinHandle<()> {
    let boot = async move {
        let mut timeline = Timeline::default();
        let begin = now_ns();
        let prepared = Prepared::new(options)?;
        timeline.until_now("host", "prepare the sandbox", begin);
        let booted = prepared.boot(hypervisor.as_ref(), &mut timeline).await?;
        Ok((booted.settle()?, timeline))
    };
    spawn_local(async move {
        let result = boot.await;
        report(&events, Event::Up(Box::new(result)));
    })
}

/// Ends a monitor that nobody wants: its creator was killed.
pub(crate) fn spawn_desertion(options: &Options, events: UnboundedSender<Event>) {
    let limit = DESERTION + Duration::from_secs(options.config.vmm.boot_timeout_s.into());
    spawn_local(async move {
        tokio::time::sleep(limit).await;
        report(&events, Event::Deserted);
    });
}

/// Watches the machine's processes; when one ends, the machine has.
pub(crate) fn spawn_watch(ready: &Ready, events: UnboundedSender<Event>) {
    let vm = Arc::clone(&ready.vm);
    let devices = Rc::clone(&ready.devices);
    spawn_local(async move {
        let end = machine::end_of(vm.as_ref(), &devices).await;
        report(&events, Event::Down(end.line.into()));
    });
}

/// Lets the guest write back what it has and power off; kills the VM when that
/// takes too long. The machine's watch reports the end.
pub(crate) fn spawn_power_off(ready: &Ready, has_disks: bool) {
    let vm: Arc<dyn Vm> = Arc::clone(&ready.vm);
    let more = match has_disks {
        true => WRITE_BACK_LIMIT,
        false => Duration::ZERO,
    };
    let agent = ready.agent.with_more_time(more);
    spawn_local(async move {
        let polite = async {
            match agent.shutdown(&message::Empty::default()).await {
                Ok(_) => {}
                // A client that was quick has ended the machine by now.
                Err(agent::Error::Lost { .. }) => return,
                Err(error) => {
                    tracing::warn!(%error, "the guest did not shut down");
                    return;
                }
            }
            // Who has a disk in it waits for its end, and everything is written.
            if !has_disks {
                vm.exited().await;
            }
        };
        let _ = timeout(POWER_OFF_LIMIT + more, polite).await;
        vm.kill();
    });
}
