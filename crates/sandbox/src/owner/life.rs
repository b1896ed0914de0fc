//! Processes start, end and are removed.

use std::{
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use casemate_hypervisor::DeviceId;
use oci_spec::runtime::Hooks;

use super::{Farewell, Machine, Owner, answer};
use crate::{
    cgroup::{Cgroup, limits},
    container::{Container, ExitStatus, LOST, Phase, Reply},
    error::Error,
    handle::{Create, News},
    identifier::Id,
    key::Key,
    machine::Client,
    policy::{self, Operation},
    state::State,
    tasks::{self, Remains},
    timeline::{Timeline, now_ns},
};

impl Owner {
    pub(super) fn start(&mut self, key: Key, reply: Reply<u32>) {
        // An exec does not mind that its container is paused; see there.
        if key.exec.is_some() && self.process(&key).is_some_and(|one| one.waiting.is_some()) {
            return self.start_exec(key, reply);
        }
        if let Err(error) = self.permit(&key, Operation::Start) {
            return answer(reply, Err(error));
        }
        let agent = match self.agent() {
            Ok(agent) => agent,
            Err(error) => return answer(reply, Err(error)),
        };
        let process = self.process(&key).expect("permitted");
        if process.phase == Phase::Starting {
            return answer(reply, Err(policy::Refusal::AlreadyRunning.into()));
        }
        process.phase = Phase::Starting;
        let begin = now_ns();
        if let Some(container) = self.containers.get_mut(&key.container)
            && let Some(told_ns) = container.told_ns.take()
        {
            self.timeline
                .add("client", "between create and start", told_ns, begin);
        }
        if let Err(error) = self.limit_processor_time(&key) {
            if let Some(process) = self.process(&key) {
                process.phase = Phase::Created;
            }
            return answer(reply, Err(error));
        }
        let container = self.containers.get(&key.container);
        let hook_time = container.map_or(Duration::ZERO, |container| container.hook_time);
        tasks::spawn_start(
            key,
            agent,
            hook_time,
            self.network(),
            self.timeline.same_clock(),
            reply,
            self.events.clone(),
        );
    }

    /// Holds the VM to the container's CPU limit from now on.
    pub(super) fn limit_processor_time(&self, key: &Key) -> Result<(), Error> {
        let container = self.containers.get(&key.container);
        let host = container.map(|container| &container.host);
        if key.exec.is_none()
            && let Some(host) = host
            && let (Some(path), Some(resources)) = (&host.cgroups_path, &host.resources)
        {
            let group = Cgroup::locate(path.as_ref())?;
            group.limit(&limits::bandwidth(resources))?;
        }
        Ok(())
    }

    pub(super) fn started(
        &mut self,
        key: &Key,
        result: Result<Timeline, Error>,
        reply: Reply<u32>,
    ) {
        let timeline = match result {
            Ok(timeline) => timeline,
            Err(error) => {
                if let Some(process) = self.process(key)
                    && process.phase == Phase::Starting
                {
                    process.phase = Phase::Created;
                }
                self.tell_of_end(key);
                return answer(reply, Err(error));
            }
        };
        self.timeline.absorb(timeline);
        let Some(process) = self.process(key) else {
            return answer(reply, Err(Error::NotFound));
        };
        // A short program has ended before the answer came.
        if process.phase == Phase::Starting {
            process.phase = Phase::Running;
        }
        let pid = process.pid;
        self.store(key);
        if let (Ok(agent), Some(container)) = (self.agent(), self.containers.get(&key.container)) {
            let notice = Rc::clone(&container.out_of_memory);
            tasks::spawn_memory_watch(key, agent, notice);
        }
        self.options.client.tell(News::Started(key.clone(), pid));
        self.tell_of_end(key);
        if let Some(container) = self.containers.get(&key.container) {
            let state = container.state(&key.container, Some(self.tier.clone()));
            tasks::spawn_poststart(container.host.hooks.clone(), state);
        }
        answer(reply, Ok(pid));
    }

    pub(super) fn ended(&mut self, key: &Key, exit: ExitStatus) {
        let Some(process) = self.process(key) else {
            return;
        };
        if matches!(process.phase, Phase::Stopped(_)) {
            return;
        }
        let was_creating = process.phase == Phase::Creating;
        let was_starting = process.phase == Phase::Starting;
        process.phase = Phase::Stopped(exit);
        tracing::info!(process = %key, status = exit.code, "ended");
        // Outside, the state is seen first and the end second.
        self.store(key);
        let process = self.process(key).expect("found above");
        // An exec that the guest has never heard of has not ended either.
        process.untold = process.waiting.take().is_none() && !was_creating;
        process.end(exit);
        let removal = process.removal.take();
        // The answer to its start is on its way.
        if !was_starting {
            self.tell_of_end(key);
        }
        if was_creating {
            let error = match &self.machine {
                Machine::Down(error) => error.clone(),
                _ => Error::Closing,
            };
            return self.creation_failed(key, error);
        }
        if let Some(reply) = removal {
            return self.remove(key, exit, reply);
        }
        if key.exec.is_none() && !self.directory(&key.container).exists() {
            // Deleted between the death of its creator and its making: nobody will ask
            // for it again, and the sandbox would wait for that.
            let (ignored, _) = tokio::sync::oneshot::channel();
            return self.remove(key, exit, ignored);
        }
        if key.exec.is_none() {
            self.release_held(&key.container);
            return self.retire();
        }
        self.forget_ended(key);
    }

    /// The news of a process's end come after those of its start.
    fn tell_of_end(&mut self, key: &Key) {
        let Some(process) = self.process(key) else {
            return;
        };
        if let Phase::Stopped(exit) = process.phase
            && std::mem::take(&mut process.untold)
        {
            let news = News::Exited(key.clone(), process.pid, exit);
            self.options.client.tell(news);
        }
    }

    /// Drops an exec that has ended and that nobody will ask for: who attached
    /// a stand-in learns the status from that.
    fn forget_ended(&mut self, key: &Key) {
        let ended = self
            .process(key)
            .is_some_and(|process| !process.kept && matches!(process.phase, Phase::Stopped(_)));
        if key.exec.is_some() && ended {
            self.forget(key);
            if let Ok(agent) = self.agent() {
                tasks::spawn_forget(key, agent);
            }
        }
    }

    /// Execs that waited for their container are decided: it goes on, or has
    /// ended.
    pub(super) fn release_held(&mut self, container: &Id) {
        let Some(container) = self.containers.get_mut(container) else {
            return;
        };
        container.paused = false;
        for (key, reply) in std::mem::take(&mut container.held) {
            self.start_exec(key, reply);
        }
    }

    pub(super) fn stand_in_gone(&mut self, key: &Key) {
        // Whoever announced it was killed before asking for its process.
        self.attachments.remove(key);
        if let Some(reply) = self.no_longer_waiting(key) {
            self.creating.insert(key.clone(), reply);
            return self.creation_failed(key, Error::Host("its stand-in was killed".into()));
        }
        let Some(process) = self.process(key) else {
            return;
        };
        if process.stand_in.is_none() {
            return;
        }
        if process.waiting.is_some() {
            // The guest has never heard of it.
            self.forget(key);
            return;
        }
        process.orphaned = true;
        tracing::warn!(process = %key, "stand-in was killed, killing its process");
        if let Ok(agent) = self.agent() {
            tasks::spawn_kill(key.clone(), agent);
        }
    }

    /// Takes a container back that waits for the machine.
    fn no_longer_waiting(&mut self, key: &Key) -> Option<Reply<u32>> {
        let Machine::Starting(waiting) = &mut self.machine else {
            return None;
        };
        let named = |create: &Create| key.exec.is_none() && create.id == key.container;
        let n = waiting.iter().position(|(create, ..)| named(create))?;
        let (_, _, _, reply) = waiting.remove(n);
        Some(reply)
    }

    pub(super) fn delete(&mut self, key: &Key, force: bool, reply: Reply<ExitStatus>) {
        let operation = if force {
            Operation::ForceDelete
        } else {
            Operation::Delete
        };
        if let Err(error) = self.permit(key, operation) {
            return answer(reply, Err(error));
        }
        let agent = self.agent();
        let process = self.process(key).expect("permitted");
        if process.waiting.take().is_some() {
            let exit = ExitStatus::now(LOST);
            process.end(exit);
            self.forget(key);
            return answer(reply, Ok(exit));
        }
        match (process.phase, agent) {
            (Phase::Stopped(exit), _) => self.remove(key, exit, reply),
            (_, Ok(agent)) => {
                process.removal = Some(reply);
                tasks::spawn_kill(key.clone(), agent);
            }
            (_, Err(error)) => answer(reply, Err(error)),
        }
    }

    /// Removes an ended process, and with an init its container.
    pub(super) fn remove(&mut self, key: &Key, exit: ExitStatus, reply: Reply<ExitStatus>) {
        let Some(container) = self.forget(key) else {
            if let Ok(agent) = self.agent() {
                tasks::spawn_forget(key, agent);
            }
            return answer(reply, Ok(exit));
        };
        let state = container.state(&key.container, Some(self.tier.clone()));
        let poststop = (container.host.hooks, state);
        let farewell = Farewell::Deleted(exit, reply);
        self.bury(key, Some(poststop), container.disk, farewell);
    }

    /// Removes what a container that was dropped has left.
    pub(super) fn bury(
        &mut self,
        key: &Key,
        poststop: Option<(Hooks, State)>,
        disk: Option<DeviceId>,
        farewell: Farewell,
    ) {
        let id = &key.container;
        self.leaving += 1;
        self.attachments.retain(|other, _| other.container != *id);
        let (guest, share, vm) = match &self.machine {
            Machine::Ready(ready) => (
                Some(ready.agent.clone()),
                Rc::downgrade(&ready.share),
                Some(Arc::clone(&ready.vm)),
            ),
            Machine::Down(_) | Machine::Starting(_) => (None, Weak::new(), None),
        };
        // With others alive the guest has to let go first; of a disk in any case,
        // for it may be used elsewhere next.
        let others = self.containers.values().any(Container::is_alive);
        let made = matches!(farewell, Farewell::Deleted(..));
        let waited_for = made && (others || disk.is_some());
        let remains = Remains {
            key: key.clone(),
            directory: self.directory(id),
            guest: guest.filter(|_| waited_for),
            disk: vm.zip(disk),
            share,
            poststop,
            farewell,
            timeline: self.timeline.activity(format!("remove {id}")),
        };
        tasks::spawn_removal(remains, self.events.clone());
    }

    /// The host has nothing of a container any more. A sandbox without one has
    /// no purpose and goes with the last.
    pub(super) fn removed(&mut self, farewell: Farewell, timeline: Timeline) {
        self.timeline.absorb(timeline);
        self.leaving -= 1;
        if !self.is_needed(None) && matches!(self.options.client, Client::CommandLine) {
            self.finish();
        }
        match farewell {
            Farewell::Deleted(exit, reply) => answer(reply, Ok(exit)),
            Farewell::NotMade(error, reply) => {
                if let Some(reply) = reply {
                    answer(reply, Err(error));
                }
            }
        }
    }

    /// Drops a process; returns the container when it went with its init.
    pub(super) fn forget(&mut self, key: &Key) -> Option<Container> {
        match &key.exec {
            None => self.containers.remove(&key.container),
            Some(exec) => {
                self.containers.get_mut(&key.container)?.execs.remove(exec);
                None
            }
        }
    }
}
