//! The machine comes up, does not, or goes away.

use std::sync::Arc;

use super::{Machine, Owner};
use crate::{
    container::{Container, ExitStatus, LOST},
    error::Error,
    key::Key,
    machine::Ready,
    tasks,
    timeline::Timeline,
};

impl Owner {
    pub(super) fn machine_up(&mut self, mut ready: Ready, timeline: Timeline) {
        tracing::info!(vmm = ready.vm.pid(), "machine is up");
        self.timeline.absorb(timeline);
        tasks::spawn_watch(&ready, self.events.clone());
        if !matches!(&self.machine, Machine::Starting(waiting) if !waiting.is_empty()) {
            // Nobody says when a container will come.
            ready.turn = None;
        }
        let before = std::mem::replace(&mut self.machine, Machine::Ready(Box::new(ready)));
        if let Machine::Starting(waiting) = before {
            for (create, bundle, attachment, reply) in waiting {
                self.make(create, *bundle, attachment, reply);
            }
        }
    }

    /// The first container is made, or could not be.
    pub(super) fn end_turn(&mut self) {
        if let Machine::Ready(ready) = &mut self.machine {
            ready.turn = None;
        }
    }

    pub(super) fn machine_failed(&mut self, error: Error) {
        tracing::error!(%error, "machine did not come up");
        let before = std::mem::replace(&mut self.machine, Machine::Down(error.clone()));
        if let Machine::Starting(waiting) = before {
            for (create, _, attachment, reply) in waiting {
                let key = Key::init(create.id);
                self.containers.remove(&key.container);
                attachment.stand_in.dismiss(LOST);
                self.creating.insert(key.clone(), reply);
                self.creation_failed(&key, error.clone());
            }
        }
    }

    pub(super) fn machine_down(&mut self, reason: Arc<str>) {
        if matches!(self.machine, Machine::Down(_)) {
            return;
        }
        tracing::info!(%reason, "machine has ended");
        // Dropping the machine ends what is left of its processes.
        self.machine = Machine::Down(Error::Down(reason));
        let exit = ExitStatus::now(LOST);
        let mut lost = Vec::new();
        for (id, container) in &self.containers {
            let keys = container.execs.keys().cloned().map(Some).chain([None]);
            lost.extend(keys.map(|exec| Key {
                container: id.clone(),
                exec,
            }));
        }
        for key in lost {
            self.ended(&key, exit);
        }
    }

    /// With its last container ended the VM has no purpose: it powers off while
    /// the client still reads the exit status.
    pub(super) fn retire(&mut self) {
        if let Machine::Ready(ready) = &self.machine
            && !self.containers.values().any(Container::is_alive)
        {
            let mut containers = self.containers.values();
            let has_disks = containers.any(|container| container.disk.is_some());
            tasks::spawn_power_off(ready, has_disks);
        }
    }
}
