//! Containers and processes are made: what the host has to give is taken, then
//! the guest is asked.

use std::collections::BTreeMap;

use super::{Machine, Owner, answer};
use crate::{
    agent::Agent,
    cgroup::{Cgroup, limits},
    container::{Container, ExitStatus, HeldExec, LOST, Phase, Process, Reply},
    error::Error,
    handle::Create,
    key::Key,
    policy::Operation,
    share::Entry,
    spec,
    stand_in::Attachment,
    state::Status,
    tasks::{self, Made, ReadBundle},
    timeline::now_ns,
};

impl Owner {
    pub(super) fn attach(&mut self, attachment: Attachment) -> Result<(), Error> {
        let key = attachment.key.clone();
        if self.process(&key).is_some() || self.attachments.contains_key(&key) {
            return Err(Error::AlreadyExists);
        }
        self.attachments.insert(key, attachment);
        Ok(())
    }

    pub(super) fn create(&mut self, create: Create, reply: Reply<u32>) {
        let key = Key::init(create.id.clone());
        if self.containers.contains_key(&create.id) {
            return answer(reply, Err(Error::AlreadyExists));
        }
        let Some(attachment) = self.attachments.remove(&key) else {
            let text = "no stand-in was attached for the container";
            return answer(reply, Err(Error::Host(text.into())));
        };
        let begin = now_ns();
        let bundle = match tasks::read_bundle(&create) {
            Ok(bundle) => bundle,
            Err(error) => {
                attachment.stand_in.dismiss(LOST);
                self.creating.insert(key.clone(), reply);
                return self.creation_failed(&key, error);
            }
        };
        self.timeline.until_now("host", "read the bundle", begin);
        match &mut self.machine {
            Machine::Starting(waiting) => {
                waiting.push((create, Box::new(bundle), attachment, reply))
            }
            Machine::Ready(_) => self.make(create, bundle, attachment, reply),
            Machine::Down(error) => {
                let error = error.clone();
                attachment.stand_in.dismiss(LOST);
                self.creating.insert(key.clone(), reply);
                self.creation_failed(&key, error);
            }
        }
    }

    /// Takes what the host has to give, then asks the guest.
    pub(super) fn make(
        &mut self,
        create: Create,
        bundle: ReadBundle,
        attachment: Attachment,
        reply: Reply<u32>,
    ) {
        let key = Key::init(create.id.clone());
        let begin = now_ns();
        let ReadBundle {
            oci_version,
            host,
            mut guest,
        } = bundle;
        for warning in &host.warnings {
            tracing::warn!(container = %key, "{warning}");
        }
        guest.streams = protobuf::MessageField::some(attachment.stdio.wanted());
        let stdio = attachment.stdio;
        let mut container = Container {
            bundle: create.bundle,
            oci_version,
            process: guest.process.clone().unwrap_or_default(),
            created: tasks::timestamp(),
            init: Process::new(Some(attachment.stand_in), host.terminal),
            execs: BTreeMap::new(),
            paused: false,
            held: Vec::new(),
            hook_time: tasks::hook_time(&guest),
            host,
        };
        if !guest.start_hooks.is_empty() {
            let state = container.state(&key.container, None);
            guest.hook_state = state.with_status(Status::Created).to_oci_json();
        }
        self.creating.insert(key.clone(), reply);
        let taken = self.take_host_resources(&key, &container);
        self.timeline.until_now("host", "cgroup and mounts", begin);
        let result = taken.and_then(|()| self.store_of(&key, &container));
        if let Err(error) = result {
            container.init.end(ExitStatus::now(LOST));
            return self.creation_failed(&key, error);
        }
        let Machine::Ready(ready) = &self.machine else {
            unreachable!("make is called with a machine")
        };
        tasks::spawn_create(
            tasks::Creation {
                key: key.clone(),
                agent: ready.agent.clone(),
                hybrid: ready.hybrid.clone(),
                network: ready.network.clone(),
                resolver: resolver_of(&container),
                guest,
                stdio,
                hooks: container.host.hooks.clone(),
                bundle: container.bundle.clone(),
                state: container.state(&key.container, Some(self.tier.clone())),
                timeline: self.timeline.same_clock(),
            },
            self.events.clone(),
        );
        if let Some(stand_in) = &container.init.stand_in {
            tasks::spawn_stand_in_watch(key.clone(), stand_in, self.events.clone());
        }
        self.containers.insert(key.container, container);
    }

    pub(super) fn take_host_resources(
        &mut self,
        key: &Key,
        container: &Container,
    ) -> Result<(), Error> {
        let Machine::Ready(ready) = &mut self.machine else {
            unreachable!("make is called with a machine")
        };
        if let Some(path) = &container.host.cgroups_path {
            let group = Cgroup::make(path, &mut ready.ledger)?;
            if let Some(resources) = &container.host.resources {
                let memory_mib = self.options.config.machine.memory_mib;
                group.limit(&limits::standing(resources, memory_mib))?;
            }
            group.add(container.init.pid)?;
        }
        let rootfs = casemate_protocol::paths::rootfs_slot(key.container.as_str());
        ready.share.add(Entry {
            source: container.host.rootfs.as_path(),
            slot: &rootfs,
            readonly: false,
            recursive: true,
            readonly_below: false,
        })?;
        for share in &container.host.shares {
            ready.share.add(Entry {
                source: share.source.as_path(),
                slot: &share.slot,
                readonly: share.readonly,
                recursive: share.recursive,
                readonly_below: share.readonly_below,
            })?;
        }
        Ok(())
    }

    pub(super) fn made(&mut self, key: Key, result: Result<Made, Error>) {
        let begin = now_ns();
        let made = match result {
            Ok(made) => made,
            Err(error) => {
                if let Some(process) = self.process(&key) {
                    process.end(ExitStatus::now(LOST));
                }
                return self.creation_failed(&key, error);
            }
        };
        self.timeline.absorb(made.timeline);
        let Machine::Ready(ready) = &self.machine else {
            // The machine went while the guest answered.
            return;
        };
        tasks::spawn_wait(key.clone(), ready, made.outputs, self.events.clone());
        let Some(process) = self.process(&key) else {
            return;
        };
        process.phase = Phase::Created;
        process.input = made.input;
        let pid = process.pid;
        self.store(&key);
        self.timeline
            .until_now("host", "record the container", begin);
        if let Some(reply) = self.creating.remove(&key) {
            answer(reply, Ok(pid));
        }
        if let Some(reply) = self.execing.remove(&key) {
            answer(reply, Ok(()));
        }
    }

    /// A process could not be made: nothing of it stays. A sandbox without a
    /// container has no purpose and goes with it.
    pub(super) fn creation_failed(&mut self, key: &Key, error: Error) {
        tracing::error!(process = %key, %error, "not created");
        if key.exec.is_some() {
            self.forget(key);
            if let Some(reply) = self.execing.remove(key) {
                answer(reply, Err(error));
            }
            return;
        }
        self.containers.remove(&key.container);
        if let Machine::Ready(ready) = &self.machine
            && let Err(error) = ready.share.remove_container(key.container.as_str())
        {
            tracing::warn!(%error, "after a failed create");
        }
        let reply = self.creating.remove(key);
        if self.containers.is_empty() {
            self.finish();
        }
        if let Some(reply) = reply {
            answer(reply, Err(error));
        }
    }

    pub(super) fn exec(&mut self, key: Key, process: Vec<u8>, reply: Reply<()>) {
        // Born into a frozen cgroup it would never be ready.
        if let Some(container) = self.containers.get_mut(&key.container)
            && container.paused
        {
            container.held.push(HeldExec {
                key,
                process,
                reply,
            });
            return;
        }
        let attachment = self.attachments.remove(&key);
        let made = self.exec_process(&key, &process);
        let (guest, agent, hybrid) = match made {
            Ok(made) => made,
            Err(error) => {
                if let Some(attachment) = attachment {
                    attachment.stand_in.dismiss(LOST);
                }
                return answer(reply, Err(error));
            }
        };
        let (stand_in, stdio) = match attachment {
            Some(attachment) => (Some(attachment.stand_in), attachment.stdio),
            None => (None, Default::default()),
        };
        if let Some(stand_in) = &stand_in {
            tasks::spawn_stand_in_watch(key.clone(), stand_in, self.events.clone());
        }
        let process = Process::new(stand_in, guest.terminal);
        if let Err(error) = self.add_to_cgroup(&key, process.stand_in_pid()) {
            tracing::warn!(process = %key, %error, "not in the container's cgroup");
        }
        let exec = key.exec.clone().expect("checked by exec_process");
        let container = self
            .containers
            .get_mut(&key.container)
            .expect("checked by exec_process");
        container.execs.insert(exec, process);
        self.execing.insert(key.clone(), reply);
        tasks::spawn_exec(
            key,
            agent,
            hybrid,
            guest,
            stdio,
            self.timeline.same_clock(),
            self.events.clone(),
        );
    }

    pub(super) fn exec_process(
        &mut self,
        key: &Key,
        process: &[u8],
    ) -> Result<(casemate_protocol::agent::Process, Agent, std::path::PathBuf), Error> {
        self.permit(&Key::init(key.container.clone()), Operation::Exec)?;
        if key.exec.is_none() || self.process(key).is_some() {
            return Err(Error::AlreadyExists);
        }
        let (agent, hybrid) = match &self.machine {
            Machine::Ready(ready) => (ready.agent.clone(), ready.hybrid.clone()),
            Machine::Down(error) => return Err(error.clone()),
            Machine::Starting(_) => return Err(Error::NotFound),
        };
        let container = self.containers.get(&key.container).ok_or(Error::NotFound)?;
        let process = spec::parse_process(process)?;
        let (guest, warnings) = spec::exec_process(&process, &container.process)?;
        for warning in warnings {
            tracing::warn!(process = %key, "{warning}");
        }
        Ok((guest, agent, hybrid))
    }

    /// Puts a process of the host into the cgroup of a container.
    pub(super) fn add_to_cgroup(&self, key: &Key, pid: Option<u32>) -> Result<(), Error> {
        let container = self.containers.get(&key.container);
        let path = container.and_then(|container| container.host.cgroups_path.as_ref());
        if let (Some(path), Some(pid)) = (path, pid) {
            let group = Cgroup::locate(path.as_ref())?;
            group.add(pid)?;
        }
        Ok(())
    }
}

fn resolver_of(container: &Container) -> Option<std::path::PathBuf> {
    let resolver = container.host.resolver.as_ref()?;
    Some(resolver.as_path().to_owned())
}
