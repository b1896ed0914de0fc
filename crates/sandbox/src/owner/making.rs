//! Containers and processes are made: what the host has to give is taken, then
//! the guest is asked.

use std::{collections::BTreeMap, path::Path, rc::Rc, sync::Arc};

use casemate_linux::view::View;

use super::{Farewell, Machine, Owner, answer};
use crate::{
    cgroup::{Cgroup, limits},
    container::{Container, ExitStatus, LOST, Phase, Process, Reply, WaitingExec},
    error::Error,
    facade::Facade,
    handle::{Create, News},
    key::Key,
    ledger::Ledger,
    neighbours::Neighbour,
    oom::Notice,
    policy::{Operation, Refusal},
    share::Taken,
    spec::{self, GuestSpec, NetworkNamespace},
    stand_in::{Attachment, StandIn},
    state::Status,
    stdio::Stdio,
    tasks::{self, Made, ReadBundle},
    timeline::now_ns,
};

impl Owner {
    pub(super) fn attach(&mut self, mut attachment: Attachment) -> Result<(), Error> {
        let key = attachment.key.clone();
        if self.process(&key).is_some() || self.attachments.contains_key(&key) {
            return Err(Error::AlreadyExists);
        }
        let child = attachment.child.take();
        tasks::spawn_stand_in_watch(
            key.clone(),
            &attachment.stand_in,
            child,
            self.events.clone(),
        );
        self.attachments.insert(key, attachment);
        Ok(())
    }

    pub(super) fn create(&mut self, mut create: Create, reply: Reply<u32>) {
        let key = Key::init(create.id.clone());
        if self.containers.contains_key(&create.id) {
            return answer(reply, Err(Error::AlreadyExists));
        }
        let Some(attachment) = self.attachments.remove(&key) else {
            let text = "no stand-in was attached for the container";
            return answer(reply, Err(Error::Host(text.into())));
        };
        let begin = now_ns();
        let bundle = match self.read_bundle(&mut create, attachment.view.as_ref()) {
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

    fn read_bundle(&self, create: &mut Create, view: Option<&View>) -> Result<ReadBundle, Error> {
        if let Some(split) = create.split.take() {
            return Ok(ReadBundle::of(*split));
        }
        let view = view.ok_or_else(|| Error::Host("a container came without its view".into()))?;
        let pod = self.options.pod.as_ref();
        let mut bundle = tasks::read_bundle(create, view, self.neighbours(), pod)?;
        if pod.is_some() {
            spec::share_memory(&mut bundle.guest, self.options.id.as_str());
        }
        let at_home = match bundle.host.network {
            NetworkNamespace::Of(_) => true,
            NetworkNamespace::New => pod.is_some(),
            NetworkNamespace::Path(_) => false,
        };
        if at_home || create.id == self.options.id {
            return Ok(bundle);
        }
        let text = format!(
            "linux.namespaces: sandbox {:?} has another network",
            self.options.id.as_str()
        );
        Err(Error::Host(text.into()))
    }

    /// Those whose namespaces a new container can join.
    fn neighbours(&self) -> Vec<Neighbour> {
        let made = self.containers.iter().filter(|(_, container)| {
            container.is_alive() && container.init.phase != Phase::Creating
        });
        let neighbours = made.map(|(id, container)| Neighbour {
            id: id.to_string(),
            pid: container.init.pid,
            sandbox: self.options.directory.clone(),
        });
        neighbours.collect()
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
            files,
            disk,
        } = bundle;
        for warning in &host.warnings {
            tracing::warn!(container = %key, "{warning}");
        }
        if disk.is_some() {
            guest.rootfs.clear();
        }
        guest.streams = protobuf::MessageField::some(attachment.stdio.wanted());
        let (stdio, size) = (attachment.stdio, attachment.size);
        let mut container = Container {
            out_of_memory: Rc::new(Notice::new(
                &self.options.client,
                &create.id,
                &create.bundle,
                &host,
            )),
            bundle: create.bundle,
            oci_version,
            process: guest.process.clone().unwrap_or_default(),
            created: tasks::timestamp(),
            told_ns: None,
            init: Process::new(Some(attachment.stand_in), host.terminal),
            execs: BTreeMap::new(),
            paused: false,
            held: Vec::new(),
            hook_time: tasks::hook_time(&guest),
            disk: None,
            host,
        };
        container.init.size = size.map(|size| (size.columns.into(), size.rows.into()));
        if !guest.start_hooks.is_empty() {
            let state = container.state(&key.container, None);
            guest.hook_state = state.with_status(Status::Created).to_oci_json();
        }
        self.creating.insert(key.clone(), reply);
        if tasks::has_hooks(&container.host.hooks) {
            self.end_turn();
        }
        self.warn_of_shortage(&container);
        let taken = self.take_host_resources(&key, &container, &files);
        self.timeline.until_now("host", "cgroup and mounts", begin);
        let result = taken.and_then(|()| self.store_of(&key, &container));
        if let Err(error) = result {
            container.init.end(ExitStatus::now(LOST));
            return self.creation_failed(&key, error);
        }
        let Machine::Ready(ready) = &self.machine else {
            unreachable!("make is called with a machine")
        };
        let stand_in = container.init.stand_in.as_ref();
        // Where the host has no files of it, there is nothing to show.
        let stand_in = stand_in.filter(|_| !guest.rootfs.is_empty());
        let facade =
            stand_in.and_then(|stand_in| facade(&key, stand_in, ready.share.path(), &guest));
        tasks::spawn_create(
            tasks::Creation {
                key: key.clone(),
                vm: Arc::clone(&ready.vm),
                disk,
                agent: ready.agent.clone(),
                hybrid: ready.hybrid.clone(),
                network: ready.network.clone(),
                resolver: resolver_of(&container),
                guest,
                facade,
                stdio,
                hooks: container.host.hooks.clone(),
                bundle: container.bundle.clone(),
                state: container.state(&key.container, Some(self.tier.clone())),
                timeline: self.timeline.same_clock(),
            },
            self.events.clone(),
        );
        self.containers.insert(key.container, container);
    }

    pub(super) fn take_host_resources(
        &mut self,
        key: &Key,
        container: &Container,
        files: &[Taken],
    ) -> Result<(), Error> {
        let mut ledger = Ledger::create(&self.directory(&key.container))?;
        let Machine::Ready(ready) = &self.machine else {
            unreachable!("make is called with a machine")
        };
        if let Some(path) = &container.host.cgroups_path {
            // That of the machine is in the sandbox's own ledger.
            let group = match self.options.cgroup.as_ref() == Some(path) {
                true => Cgroup::locate(path.as_ref())?,
                false => Cgroup::make(path, container.init.pid, &mut ledger)?,
            };
            if let Some(resources) = &container.host.resources {
                let memory_mib = self.options.config.machine.memory_mib;
                group.limit(&limits::standing(resources, memory_mib))?;
            }
            group.add(container.init.pid)?;
        }
        for taken in files {
            ready.share.put(taken)?;
        }
        Ok(())
    }

    pub(super) fn made(&mut self, key: Key, result: Result<Made, Error>) {
        let begin = now_ns();
        self.end_turn();
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
            // It went while the guest answered, and its containers with it.
            if let Some(reply) = self.starting.remove(&key) {
                answer(reply, Err(Error::NotFound));
            }
            return;
        };
        let Some(container) = self.containers.get_mut(&key.container) else {
            return;
        };
        if made.disk.is_some() {
            container.disk = made.disk;
        }
        tasks::spawn_wait(
            key.clone(),
            ready,
            made.outputs,
            self.options.client.patience(),
            Rc::clone(&container.out_of_memory),
            self.events.clone(),
        );
        let Some(process) = self.process(&key) else {
            return;
        };
        process.phase = match key.exec {
            None => Phase::Created,
            Some(_) => Phase::Running,
        };
        process.input = made.input;
        let (pid, orphaned) = (process.pid, process.orphaned);
        let size = process.size.take();
        self.store(&key);
        if orphaned && let Ok(agent) = self.agent() {
            tasks::spawn_kill(key.clone(), agent);
        }
        if let Some((columns, rows)) = size {
            let (ignored, _) = tokio::sync::oneshot::channel();
            self.resize(&key, columns, rows, ignored);
        }
        if key.exec.is_none() {
            self.timeline
                .until_now("host", "record the container", begin);
            if let Some(container) = self.containers.get_mut(&key.container) {
                container.told_ns = Some(now_ns());
            }
        }
        if let Some(reply) = self.creating.remove(&key) {
            answer(reply, Ok(pid));
        }
        if let Some(reply) = self.starting.remove(&key) {
            self.options.client.tell(News::Started(key, pid));
            answer(reply, Ok(pid));
        }
    }

    /// A process could not be made: nothing of it stays.
    pub(super) fn creation_failed(&mut self, key: &Key, error: Error) {
        self.end_turn();
        tracing::error!(process = %key, %error, "not created");
        if key.exec.is_some() {
            self.forget(key);
            if let Some(reply) = self.starting.remove(key) {
                answer(reply, Err(error));
            }
            return;
        }
        self.forget(key);
        let reply = self.creating.remove(key);
        self.bury(key, None, None, Farewell::NotMade(error, reply));
    }

    /// The first container has made the machine; the limits of the others may
    /// not fit in.
    fn warn_of_shortage(&self, container: &Container) {
        let limit = |container: &Container| container.host.memory_limit();
        let own = limit(container);
        let others = self.containers.values().filter(|other| other.is_alive());
        let promised = others.map(limit).fold(own, u64::saturating_add);
        let memory_mib = self.options.config.machine.memory_mib;
        if own > 0 && promised > u64::from(memory_mib) << 20 {
            tracing::warn!(
                limits_mib = promised >> 20,
                machine_mib = memory_mib,
                "the memory limits of the sandbox's containers exceed its machine, which its \
                 first container has sized: they cannot all be used up"
            );
        }
    }

    /// Takes a process in, for its start to make it.
    pub(super) fn exec(&mut self, key: &Key, process: &[u8]) -> Result<(), Error> {
        let attachment = self.attachments.remove(key);
        let process = match self.exec_process(key, process) {
            Ok(process) => process,
            Err(error) => {
                if let Some(attachment) = attachment {
                    attachment.stand_in.dismiss(LOST);
                }
                return Err(error);
            }
        };
        let kept = attachment.as_ref().is_none_or(|attached| attached.kept);
        let (stand_in, stdio, size) = match attachment {
            Some(attached) => (Some(attached.stand_in), attached.stdio, attached.size),
            None => Default::default(),
        };
        let size = size.map(|size| (size.columns.into(), size.rows.into()));
        let mut exec = Process::new(stand_in, process.terminal);
        exec.kept = kept;
        exec.size = size;
        let joins = |stand_in: &&StandIn| !stand_in.is_caller();
        let joining = exec.stand_in.as_ref().filter(joins).map(StandIn::pid);
        if let Err(error) = self.add_to_cgroup(key, joining) {
            tracing::warn!(process = %key, %error, "not in the container's cgroup");
        }
        exec.phase = Phase::Created;
        exec.waiting = Some(Box::new(WaitingExec { process, stdio }));
        let container = self.containers.get_mut(&key.container);
        let container = container.ok_or(Error::NotFound)?;
        if exec.stand_in.is_none() {
            // What stands for the container stands for it as well.
            exec.pid = container.init.pid;
        }
        let execs = &mut container.execs;
        execs.insert(key.exec.clone().ok_or(Error::NotFound)?, exec);
        Ok(())
    }

    pub(super) fn supply(&mut self, key: &Key, stdio: Stdio) -> Result<(), Error> {
        let process = self.process(key).ok_or(Error::NotFound)?;
        let waiting = process.waiting.as_mut();
        waiting.ok_or(Refusal::AlreadyRunning)?.stdio = stdio;
        Ok(())
    }

    fn exec_process(
        &mut self,
        key: &Key,
        process: &[u8],
    ) -> Result<casemate_protocol::agent::Process, Error> {
        self.permit(&Key::init(key.container.clone()), Operation::Exec)?;
        if key.exec.is_none() || self.process(key).is_some() {
            return Err(Error::AlreadyExists);
        }
        self.agent()?;
        let container = self.containers.get(&key.container).ok_or(Error::NotFound)?;
        let process = spec::parse_process(process)?;
        let (guest, warnings) = spec::exec_process(&process, &container.process)?;
        for warning in warnings {
            tracing::warn!(process = %key, "{warning}");
        }
        Ok(guest)
    }

    /// Has the guest make and start an exec. In a frozen container it waits:
    /// born into a frozen cgroup it would never be ready.
    pub(super) fn start_exec(&mut self, key: Key, reply: Reply<u32>) {
        if let Some(container) = self.containers.get_mut(&key.container)
            && container.paused
        {
            container.held.push((key, reply));
            return;
        }
        let (agent, hybrid) = match &self.machine {
            Machine::Ready(ready) => (ready.agent.clone(), ready.hybrid.clone()),
            Machine::Down(error) => return answer(reply, Err(error.clone())),
            Machine::Starting(_) => return answer(reply, Err(Error::NotFound)),
        };
        let Some(process) = self.process(&key) else {
            return answer(reply, Err(Error::NotFound));
        };
        let Some(waiting) = process.waiting.take() else {
            return answer(reply, Err(Refusal::AlreadyRunning.into()));
        };
        process.phase = Phase::Starting;
        let WaitingExec {
            process: mut guest,
            stdio,
        } = *waiting;
        if let Some((columns, rows)) = process.size.take() {
            (guest.columns, guest.rows) = (columns, rows);
        }
        self.starting.insert(key.clone(), reply);
        let timeline = self.timeline.activity(format!("exec {}", key.exec_id()));
        let events = self.events.clone();
        tasks::spawn_exec(key, agent, hybrid, guest, stdio, timeline, events);
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

/// What clients see of the container's files; without it they see none.
fn facade(key: &Key, stand_in: &StandIn, share: &Path, guest: &GuestSpec) -> Option<Facade> {
    let facade = stand_in
        .mounts()
        .and_then(|namespace| Facade::new(namespace, share, key.container.as_str(), guest));
    facade
        .map_err(|error| tracing::warn!(container = %key, %error, "clients do not see its files"))
        .ok()
}
