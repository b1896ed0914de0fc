//! The owner task: the only place where a sandbox's state changes.
//!
//! Requests ([`Command`]) and news ([`Event`]) come in one after the other.
//! What takes time (the guest's answers, hooks) runs in a task of its own and
//! comes back as an event, so the owner is never busy and a dying VM is noticed
//! at once. Steps of those tasks are in [`crate::tasks`].

use std::{collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use casemate_hypervisor::Hypervisor;
use tokio::sync::mpsc;

use crate::{
    agent::Agent,
    cgroup::{Cgroup, limits},
    container::{Container, ExitStatus, HeldExec, LOST, Phase, Process, Reply},
    error::Error,
    handle::{CgroupFiles, Command, Create, GuestProcess, Handle, ProcessState},
    identifier::Id,
    key::Key,
    ledger::Ledger,
    machine::{Options, Ready},
    oom,
    policy::{self, Operation},
    share::Entry,
    spec,
    stand_in::{Attachment, TerminalSize},
    state::{Lock, Status},
    tasks::{self, Made, ReadBundle},
    timeline::{Timeline, now_ns},
};

/// News from the tasks that the owner has started.
pub(crate) enum Event {
    /// The machine is there, or will never be.
    Up(Box<Result<(Ready, Timeline), Error>>),
    /// The machine has ended, with one line that says how.
    Down(Arc<str>),
    /// The guest has made a process, or not.
    Made(Key, Box<Result<Made, Error>>),
    /// A process was let go, or not.
    Started(Key, Result<Timeline, Error>, Reply<u32>),
    /// The processes of a container stand still (or go on), or could not be
    /// made to.
    Frozen(Key, bool, Result<(), Error>, Reply<()>),
    /// The kernel of the guest has killed a process of the container for want
    /// of memory.
    OutOfMemory(Key),
    /// A process has ended and its output is with the client.
    Ended(Key, ExitStatus),
    /// The terminal of a process has another size.
    TerminalSize(Key, TerminalSize),
    /// The stand-in of a process has ended before its process.
    StandInGone(Key),
    /// Nobody has asked for a container in time.
    Deserted,
}

/// The sandbox's machine.
enum Machine {
    /// Starting; what waits for it.
    Starting(Vec<(Create, Box<ReadBundle>, Attachment, Reply<u32>)>),
    /// Its agent answers.
    Ready(Box<Ready>),
    /// It has ended, or never came up.
    Down(Error),
}

/// The state of one sandbox.
struct Owner {
    options: Options,
    tier: String,
    events: mpsc::UnboundedSender<Event>,
    machine: Machine,
    containers: BTreeMap<Id, Container>,
    /// Answers due when a container's making is decided.
    creating: BTreeMap<Key, Reply<u32>>,
    execing: BTreeMap<Key, Reply<()>>,
    attachments: BTreeMap<Key, Attachment>,
    timeline: Timeline,
    /// Asked to end; answered when nothing is left.
    stopping: Option<Reply<()>>,
    finished: bool,
}

/// Starts a sandbox in this process: its machine begins to boot at once. The
/// second part is the owner's work; it ends when the sandbox has.
///
/// # Errors
/// When the directory cannot be taken into possession.
pub fn open(
    options: Options,
    hypervisor: Rc<dyn Hypervisor>,
    timeline: Timeline,
) -> Result<(Handle, impl Future<Output = ()>), Error> {
    let lock = Lock::acquire(&options.directory)?;
    let (commands, command_queue) = mpsc::unbounded_channel();
    let (events, event_queue) = mpsc::unbounded_channel();
    let owner = Owner {
        tier: hypervisor.capabilities().tier.to_string(),
        events,
        machine: Machine::Starting(Vec::new()),
        containers: BTreeMap::new(),
        creating: BTreeMap::new(),
        execing: BTreeMap::new(),
        attachments: BTreeMap::new(),
        timeline,
        stopping: None,
        finished: false,
        options,
    };
    tasks::spawn_boot(owner.options.clone(), hypervisor, owner.events.clone());
    tasks::spawn_desertion(&owner.options, owner.events.clone());
    let work = async move {
        owner.run(command_queue, event_queue).await;
        drop(lock);
    };
    Ok((Handle(commands), work))
}

impl Owner {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut events: mpsc::UnboundedReceiver<Event>,
    ) {
        while !self.finished {
            tokio::select! {
                // News first: an answer should rest on what is known.
                biased;
                Some(event) = events.recv() => self.hear(event),
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => self.finish(),
                },
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach(attachment, reply) => answer(reply, self.attach(*attachment)),
            Command::Create(create, reply) => self.create(create, reply),
            Command::Exec(key, process, reply) => self.exec(key, process, reply),
            Command::Start(key, reply) => self.start(key, reply),
            Command::Wait(key, reply) => self.wait(&key, reply),
            Command::Signal {
                key,
                signal,
                all,
                reply,
            } => self.signal(&key, signal, all, reply),
            Command::Resize {
                key,
                columns,
                rows,
                reply,
            } => self.resize(&key, columns, rows, reply),
            Command::CloseInput(key, reply) => answer(reply, self.close_input(&key)),
            Command::State(key, reply) => answer(reply, self.state(&key)),
            Command::Processes(container, reply) => self.processes(container, reply),
            Command::Freeze(container, frozen, reply) => self.freeze(container, frozen, reply),
            Command::Update(container, resources, reply) => {
                self.update(container, &resources, reply)
            }
            Command::Stats(container, reply) => self.stats(container, reply),
            Command::Delete { key, force, reply } => self.delete(&key, force, reply),
            Command::Note(span, reply) => {
                self.timeline
                    .add(&span.part, &span.name, span.begin_ns, span.end_ns);
                answer(reply, Ok(()));
            }
            Command::Timeline(reply) => answer(reply, Ok(self.timeline.spans())),
            Command::Stop(reply) => {
                self.stopping = Some(reply);
                self.finish();
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Up(result) => match *result {
                Ok((ready, timeline)) => self.machine_up(ready, timeline),
                Err(error) => self.machine_failed(error),
            },
            Event::Down(reason) => self.machine_down(reason),
            Event::Made(key, result) => self.made(key, *result),
            Event::Started(key, result, reply) => self.started(&key, result, reply),
            Event::Frozen(key, frozen, result, reply) => self.frozen(&key, frozen, result, reply),
            Event::OutOfMemory(key) => self.out_of_memory(&key),
            Event::Ended(key, exit) => self.ended(&key, exit),
            Event::TerminalSize(key, size) => {
                let (ignored, _) = tokio::sync::oneshot::channel();
                self.resize(&key, size.columns.into(), size.rows.into(), ignored);
            }
            Event::StandInGone(key) => self.stand_in_gone(&key),
            Event::Deserted => {
                if self.containers.is_empty() && self.creating.is_empty() {
                    tracing::warn!("nobody asked for a container, ending");
                    self.finish();
                }
            }
        }
    }

    // --- the machine ---

    fn machine_up(&mut self, ready: Ready, timeline: Timeline) {
        tracing::info!(vmm = ready.vm.pid(), "machine is up");
        self.timeline.absorb(timeline);
        tasks::spawn_watch(&ready, self.events.clone());
        let before = std::mem::replace(&mut self.machine, Machine::Ready(Box::new(ready)));
        if let Machine::Starting(waiting) = before {
            for (create, bundle, attachment, reply) in waiting {
                self.make(create, *bundle, attachment, reply);
            }
        }
    }

    fn machine_failed(&mut self, error: Error) {
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

    fn machine_down(&mut self, reason: Arc<str>) {
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

    // --- containers ---

    fn attach(&mut self, attachment: Attachment) -> Result<(), Error> {
        let key = attachment.key.clone();
        if self.process(&key).is_some() || self.attachments.contains_key(&key) {
            return Err(Error::AlreadyExists);
        }
        self.attachments.insert(key, attachment);
        Ok(())
    }

    fn create(&mut self, create: Create, reply: Reply<u32>) {
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
    fn make(
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

    fn take_host_resources(&mut self, key: &Key, container: &Container) -> Result<(), Error> {
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

    fn made(&mut self, key: Key, result: Result<Made, Error>) {
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
    fn creation_failed(&mut self, key: &Key, error: Error) {
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

    fn exec(&mut self, key: Key, process: Vec<u8>, reply: Reply<()>) {
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

    fn exec_process(
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

    fn start(&mut self, key: Key, reply: Reply<u32>) {
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
        if let Err(error) = self.limit_processor_time(&key) {
            if let Some(process) = self.process(&key) {
                process.phase = Phase::Created;
            }
            return answer(reply, Err(error));
        }
        let hook_time = match (&key.exec, self.containers.get(&key.container)) {
            (None, Some(container)) => container.hook_time,
            _ => Duration::ZERO,
        };
        tasks::spawn_start(
            key,
            agent,
            hook_time,
            self.timeline.same_clock(),
            reply,
            self.events.clone(),
        );
    }

    fn started(&mut self, key: &Key, result: Result<Timeline, Error>, reply: Reply<u32>) {
        let timeline = match result {
            Ok(timeline) => timeline,
            Err(error) => {
                if let Some(process) = self.process(key)
                    && process.phase == Phase::Starting
                {
                    process.phase = Phase::Created;
                }
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
        if key.exec.is_none()
            && let Some(container) = self.containers.get(&key.container)
        {
            let state = container.state(&key.container, Some(self.tier.clone()));
            tasks::spawn_poststart(container.host.hooks.clone(), state);
        }
        answer(reply, Ok(pid));
    }

    fn ended(&mut self, key: &Key, exit: ExitStatus) {
        let Some(process) = self.process(key) else {
            return;
        };
        if matches!(process.phase, Phase::Stopped(_)) {
            return;
        }
        let was_creating = process.phase == Phase::Creating;
        process.phase = Phase::Stopped(exit);
        tracing::info!(process = %key, status = exit.code, "ended");
        // Outside, the state is seen first and the end second.
        self.store(key);
        let process = self.process(key).expect("found above");
        let had_stand_in = process.stand_in.is_some();
        process.end(exit);
        let removal = process.removal.take();
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
        if key.exec.is_none() {
            self.release_held(&key.container);
            return self.retire();
        }
        // Who attached a stand-in learns the status from that, and asks for
        // nothing more.
        if had_stand_in {
            self.forget(key);
            if let Ok(agent) = self.agent() {
                tasks::spawn_forget(key, agent);
            }
        }
    }

    /// Execs that waited for their container are decided: it goes on, or has
    /// ended.
    fn release_held(&mut self, container: &Id) {
        let Some(container) = self.containers.get_mut(container) else {
            return;
        };
        container.paused = false;
        for HeldExec {
            key,
            process,
            reply,
        } in std::mem::take(&mut container.held)
        {
            self.exec(key, process, reply);
        }
    }

    fn out_of_memory(&self, key: &Key) {
        tracing::warn!(container = %key, "the guest ran out of memory for it");
        if let Some(container) = self.containers.get(&key.container)
            && let Err(error) = oom::tell_client(&container.bundle, &container.host.annotations)
        {
            tracing::warn!(container = %key, %error, "its client is not told");
        }
    }

    /// With its last container ended the VM has no purpose: it powers off while
    /// the client still reads the exit status.
    fn retire(&mut self) {
        let alive = |container: &Container| !matches!(container.init.phase, Phase::Stopped(_));
        if let Machine::Ready(ready) = &self.machine
            && !self.containers.values().any(alive)
        {
            tasks::spawn_power_off(ready);
        }
    }

    fn stand_in_gone(&mut self, key: &Key) {
        let Some(process) = self.process(key) else {
            return;
        };
        if process.stand_in.is_none() {
            return;
        }
        tracing::warn!(process = %key, "stand-in was killed, killing its process");
        if let Ok(agent) = self.agent() {
            tasks::spawn_kill(key.clone(), agent);
        }
    }

    // --- requests about one process ---

    fn wait(&mut self, key: &Key, reply: Reply<ExitStatus>) {
        match self.process(key) {
            None => answer(reply, Err(Error::NotFound)),
            Some(process) => match process.phase {
                Phase::Stopped(exit) => answer(reply, Ok(exit)),
                _ => process.waiters.push(reply),
            },
        }
    }

    fn signal(&mut self, key: &Key, signal: u32, all: bool, reply: Reply<()>) {
        match self
            .permit(key, Operation::Signal)
            .and_then(|()| self.agent())
        {
            Ok(agent) => tasks::spawn_signal(key, agent, signal, all, reply),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn resize(&mut self, key: &Key, columns: u32, rows: u32, reply: Reply<()>) {
        match self
            .permit(key, Operation::Resize)
            .and_then(|()| self.agent())
        {
            Ok(agent) => tasks::spawn_resize(key, agent, columns, rows, reply),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn close_input(&mut self, key: &Key) -> Result<(), Error> {
        self.process(key).ok_or(Error::NotFound)?.input = None;
        Ok(())
    }

    fn state(&mut self, key: &Key) -> Result<ProcessState, Error> {
        let container = self
            .containers
            .get_mut(&key.container)
            .ok_or(Error::NotFound)?;
        let bundle = container.bundle.clone();
        let status = container.status(key.exec.as_ref());
        let process = container
            .process(key.exec.as_ref())
            .ok_or(Error::NotFound)?;
        Ok(ProcessState {
            bundle,
            pid: process.pid,
            status: status.ok_or(Error::NotFound)?,
            terminal: process.terminal,
            exit: match process.phase {
                Phase::Stopped(exit) => Some(exit),
                _ => None,
            },
        })
    }

    // --- requests about one container ---

    fn processes(&mut self, container: Id, reply: Reply<Vec<GuestProcess>>) {
        let key = Key::init(container);
        match self.permitted(&key, Operation::Signal) {
            Ok((container, agent)) => {
                let execs = container.execs.iter();
                let mut host_pids: BTreeMap<String, u32> = execs
                    .map(|(exec, process)| (exec.to_string(), process.pid))
                    .collect();
                host_pids.insert(String::new(), container.init.pid);
                tasks::spawn_list(&key, agent, host_pids, reply);
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn freeze(&mut self, container: Id, frozen: bool, reply: Reply<()>) {
        let key = Key::init(container);
        let operation = if frozen {
            Operation::Pause
        } else {
            Operation::Resume
        };
        match self.permitted(&key, operation) {
            Ok((_, agent)) => {
                tasks::spawn_freeze(key, agent, frozen, reply, self.events.clone());
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn frozen(&mut self, key: &Key, frozen: bool, result: Result<(), Error>, reply: Reply<()>) {
        if result.is_ok()
            && let Some(container) = self.containers.get_mut(&key.container)
        {
            container.paused = frozen;
            if !frozen {
                self.release_held(&key.container);
            }
            self.store(key);
        }
        answer(reply, result);
    }

    fn update(&mut self, container: Id, resources: &[u8], reply: Reply<()>) {
        let key = Key::init(container);
        let memory_mib = self.options.config.machine.memory_mib;
        let decide = |owner: &mut Self| {
            let (container, agent) = owner.permitted(&key, Operation::Update)?;
            let update = spec::update(resources)?;
            if let Some(path) = &container.host.cgroups_path {
                let group = Cgroup::locate(path.as_ref())?;
                let mut limits = limits::standing(&update.resources, memory_mib);
                limits.extend(limits::bandwidth(&update.resources));
                group.limit(&limits)?;
            }
            Ok((agent, update))
        };
        match decide(self) {
            Ok((agent, update)) => {
                for warning in update.warnings {
                    tracing::warn!(container = %key, "{warning}");
                }
                tasks::spawn_update(&key, agent, update.settings, reply);
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn stats(&mut self, container: Id, reply: Reply<CgroupFiles>) {
        let key = Key::init(container);
        match self.permitted(&key, Operation::Signal) {
            Ok((_, agent)) => tasks::spawn_stats(&key, agent, reply),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn delete(&mut self, key: &Key, force: bool, reply: Reply<ExitStatus>) {
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
    fn remove(&mut self, key: &Key, exit: ExitStatus, reply: Reply<ExitStatus>) {
        let Some(container) = self.forget(key) else {
            if let Ok(agent) = self.agent() {
                tasks::spawn_forget(key, agent);
            }
            return answer(reply, Ok(exit));
        };
        let id = &key.container;
        let state = container.state(id, Some(self.tier.clone()));
        let guest = match &self.machine {
            // With others alive the guest has to let go first.
            Machine::Ready(ready) if !self.containers.is_empty() => Some(ready.agent.clone()),
            _ => None,
        };
        if guest.is_none()
            && let Machine::Ready(ready) = &self.machine
            && let Err(error) = ready.share.remove_container(id.as_str())
        {
            tracing::warn!(%error, "after delete");
        }
        tasks::spawn_remove(
            key.clone(),
            guest,
            container.host.hooks.clone(),
            state,
            exit,
            reply,
        );
    }

    /// Drops a process; returns the container when it went with its init.
    fn forget(&mut self, key: &Key) -> Option<Container> {
        match &key.exec {
            None => self.containers.remove(&key.container),
            Some(exec) => {
                self.containers.get_mut(&key.container)?.execs.remove(exec);
                None
            }
        }
    }

    // --- small things ---

    fn process(&mut self, key: &Key) -> Option<&mut Process> {
        self.containers
            .get_mut(&key.container)?
            .process(key.exec.as_ref())
    }

    fn permit(&mut self, key: &Key, operation: Operation) -> Result<(), Error> {
        let status = self
            .containers
            .get(&key.container)
            .and_then(|container| container.status(key.exec.as_ref()))
            .ok_or(Error::NotFound)?;
        Ok(policy::allow(operation, status)?)
    }

    /// The container and the agent, for an operation that is allowed now.
    fn permitted(
        &mut self,
        key: &Key,
        operation: Operation,
    ) -> Result<(&mut Container, Agent), Error> {
        self.permit(key, operation)?;
        let agent = self.agent()?;
        let container = self.containers.get_mut(&key.container);
        Ok((container.ok_or(Error::NotFound)?, agent))
    }

    /// Holds the VM to the container's CPU limit from now on.
    fn limit_processor_time(&self, key: &Key) -> Result<(), Error> {
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

    /// Puts a process of the host into the cgroup of a container.
    fn add_to_cgroup(&self, key: &Key, pid: Option<u32>) -> Result<(), Error> {
        let container = self.containers.get(&key.container);
        let path = container.and_then(|container| container.host.cgroups_path.as_ref());
        if let (Some(path), Some(pid)) = (path, pid) {
            let group = Cgroup::locate(path.as_ref())?;
            group.add(pid)?;
        }
        Ok(())
    }

    fn agent(&self) -> Result<Agent, Error> {
        match &self.machine {
            Machine::Ready(ready) => Ok(ready.agent.clone()),
            Machine::Down(error) => Err(error.clone()),
            Machine::Starting(_) => Err(Error::NotFound),
        }
    }

    /// Writes the state file of an init's container. Failing to is no reason to
    /// stop: the file is a shadow of what is known here.
    fn store(&self, key: &Key) {
        if key.exec.is_some() {
            return;
        }
        if let Some(container) = self.containers.get(&key.container)
            && let Err(error) = self.store_of(key, container)
        {
            tracing::error!(%error, "state file");
        }
    }

    fn store_of(&self, key: &Key, container: &Container) -> Result<(), Error> {
        let state = container.state(&key.container, Some(self.tier.clone()));
        Ok(state.store(&self.options.directory)?)
    }

    /// Ends everything and undoes the ledger.
    fn finish(&mut self) {
        self.finished = true;
        self.machine = Machine::Down(Error::Closing);
        for (_, mut container) in std::mem::take(&mut self.containers) {
            let alive = !matches!(container.init.phase, Phase::Stopped(_));
            if alive {
                container.init.end(ExitStatus::now(LOST));
            }
        }
        for (_, attachment) in std::mem::take(&mut self.attachments) {
            attachment.stand_in.dismiss(LOST);
        }
        let undone = Ledger::undo(&self.options.directory).map_err(Error::from);
        if let Err(error) = &undone {
            tracing::error!(%error, "something is left");
        }
        if let Some(reply) = self.stopping.take() {
            answer(reply, undone);
        }
    }
}

/// Nobody is hurt when the one who asked has gone.
fn answer<T>(reply: Reply<T>, result: Result<T, Error>) {
    let _ = reply.send(result);
}
