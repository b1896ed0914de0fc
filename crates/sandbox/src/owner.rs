//! The owner task: the only place where a sandbox's state changes.
//!
//! Requests ([`Command`]) and news ([`Event`]) come in one after the other.
//! What takes time (the guest's answers, hooks) runs in a task of its own and
//! comes back as an event, so the owner is never busy and a dying VM is noticed
//! at once. Steps of those tasks are in [`crate::tasks`]; what the owner does
//! is in [`machine`], [`making`], [`life`] and [`requests`].

mod life;
mod machine;
mod making;
mod requests;

use std::{collections::BTreeMap, path::PathBuf, rc::Rc, sync::Arc};

use casemate_hypervisor::Hypervisor;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    agent::Agent,
    container::{Container, ExitStatus, LOST, Process, Reply},
    error::Error,
    handle::{Command, Create, Handle, Stop},
    identifier::Id,
    inbox::Inbox,
    key::Key,
    layout,
    ledger::Ledger,
    machine::{Client, Options, Ready},
    network,
    policy::{self, Operation},
    stand_in::{Attachment, TerminalSize},
    state::Lock,
    tasks::{self, Made, ReadBundle},
    timeline::Timeline,
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
    /// A process has ended and its output is with the client.
    Ended(Key, ExitStatus),
    /// The terminal of a process has another size.
    TerminalSize(Key, TerminalSize),
    /// The stand-in of a process has ended before its process.
    StandInGone(Key),
    /// Nothing is left of a container on the host.
    Removed(Farewell, Timeline),
    /// Nobody has asked for a container in time.
    Deserted,
}

/// What is said when a container has gone, and to whom.
pub(crate) enum Farewell {
    /// It was deleted.
    Deleted(ExitStatus, Reply<ExitStatus>),
    /// It could not be made.
    NotMade(Error, Option<Reply<u32>>),
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
    /// Answers due when an exec's making is decided.
    starting: BTreeMap<Key, Reply<u32>>,
    attachments: BTreeMap<Key, Attachment>,
    timeline: Timeline,
    /// How many containers are on their way out.
    leaving: usize,
    /// Asked to end; answered when nothing is left.
    stopping: Option<Reply<()>>,
    /// The machine's boot, which holds all of it until it is up.
    boot: JoinHandle<()>,
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
    let (handle, inbox) = Inbox::new();
    Ok((handle, inbox.open(options, hypervisor, timeline)?))
}

impl Inbox {
    /// [`open`] for a [`Handle`] that exists already.
    ///
    /// # Errors
    /// As there; the handle is of no use then.
    pub fn open(
        self,
        options: Options,
        hypervisor: Rc<dyn Hypervisor>,
        timeline: Timeline,
    ) -> Result<impl Future<Output = ()>, Error> {
        let lock = Lock::acquire(&options.directory)?;
        let (events, event_queue) = mpsc::unbounded_channel();
        let tier = hypervisor.capabilities().tier.to_string();
        let boot = tasks::spawn_boot(options.clone(), hypervisor, events.clone());
        let owner = Owner {
            tier,
            events,
            machine: Machine::Starting(Vec::new()),
            containers: BTreeMap::new(),
            creating: BTreeMap::new(),
            starting: BTreeMap::new(),
            attachments: BTreeMap::new(),
            timeline,
            leaving: 0,
            stopping: None,
            boot,
            finished: false,
            options,
        };
        tasks::spawn_desertion(&owner.options, owner.events.clone());
        Ok(async move {
            owner.run(self.0, event_queue).await;
            drop(lock);
        })
    }
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
        // News may be of a machine that has just come up.
        drop((commands, events));
        self.end().await;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach(attachment, reply) => answer(reply, self.attach(*attachment)),
            Command::Create(create, reply) => self.create(create, reply),
            Command::Exec(key, process, reply) => answer(reply, self.exec(&key, &process)),
            Command::Supply(key, stdio, reply) => answer(reply, self.supply(&key, stdio)),
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
            Command::Containers(reply) => answer(reply, Ok(self.statuses())),
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
            Command::Stop(when, reply) => self.stop(when, reply),
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
            Event::Frozen(key, frozen, result, reply) => self.frozen(key, frozen, result, reply),
            Event::Ended(key, exit) => self.ended(&key, exit),
            Event::TerminalSize(key, size) => {
                if let Some(attachment) = self.attachments.get_mut(&key) {
                    attachment.size = Some(size);
                    return;
                }
                let (ignored, _) = tokio::sync::oneshot::channel();
                self.resize(&key, size.columns.into(), size.rows.into(), ignored);
            }
            Event::StandInGone(key) => self.stand_in_gone(&key),
            Event::Removed(farewell, timeline) => self.removed(farewell, timeline),
            Event::Deserted => self.deserted(),
        }
    }

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

    fn agent(&self) -> Result<Agent, Error> {
        match &self.machine {
            Machine::Ready(ready) => Ok(ready.agent.clone()),
            Machine::Down(error) => Err(error.clone()),
            Machine::Starting(_) => Err(Error::NotFound),
        }
    }

    fn network(&self) -> network::Handle {
        match &self.machine {
            Machine::Ready(ready) => ready.network.clone(),
            Machine::Down(_) | Machine::Starting(_) => network::Handle::default(),
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
        Ok(state.store(&self.directory(&key.container))?)
    }

    /// The directory of a container.
    fn directory(&self, container: &Id) -> PathBuf {
        self.options.root.join(container)
    }

    /// Whether somebody has, or waits for, or is about to lose a container that
    /// is not `except`.
    fn is_needed(&self, except: Option<&Id>) -> bool {
        let waiting = match &self.machine {
            Machine::Starting(waiting) => waiting.as_slice(),
            Machine::Ready(_) | Machine::Down(_) => &[],
        };
        let mut ids = (waiting.iter().map(|(create, ..)| &create.id)).chain(self.containers.keys());
        self.leaving > 0 || ids.any(|id| Some(id) != except)
    }

    fn stop(&mut self, when: Stop, reply: Reply<()>) {
        match when {
            Stop::Without(container) if self.is_needed(Some(&container)) => answer(reply, Ok(())),
            Stop::Machine => {
                if let Machine::Ready(ready) = &self.machine {
                    ready.vm.kill();
                }
                answer(reply, Ok(()));
            }
            Stop::Without(_) | Stop::Now => {
                self.stopping = Some(reply);
                self.finish();
            }
        }
    }

    fn deserted(&mut self) {
        if self.is_needed(None) {
            return;
        }
        tracing::warn!("nobody asked for a container, ending");
        // Who made its directory was killed.
        if let Err(error) = Ledger::undo(&self.directory(&self.options.id)) {
            tracing::error!(%error, "something is left");
        }
        self.finish();
    }

    /// Ends everything; [`Owner::end`] comes next.
    fn finish(&mut self) {
        self.finished = true;
        self.machine = Machine::Down(Error::Closing);
        for (id, mut container) in std::mem::take(&mut self.containers) {
            if container.is_alive() {
                container.init.end(ExitStatus::now(LOST));
                if let Err(error) = self.store_of(&Key::init(id), &container) {
                    tracing::error!(%error, "state file");
                }
            }
        }
        for (_, attachment) in std::mem::take(&mut self.attachments) {
            attachment.stand_in.dismiss(LOST);
        }
    }

    /// Lets go of a machine that is still on its way, and undoes the ledger.
    async fn end(mut self) {
        self.boot.abort();
        // How it ended is of no interest, only that it has.
        let _ = (&mut self.boot).await;
        let undone = Ledger::undo(&self.options.directory).map_err(Error::from);
        if let Err(error) = &undone {
            tracing::error!(%error, "something is left");
        }
        if matches!(self.options.client, Client::Containerd(_)) {
            self.leave_nothing();
        }
        if let Some(reply) = self.stopping.take() {
            answer(reply, undone);
        }
    }
}

impl Owner {
    /// Removes what is left of containers: containerd does not ask for one that
    /// it has never heard to be made.
    fn leave_nothing(&self) {
        let own = self.directory(&self.options.id);
        let others = layout::others_in(&own).into_iter();
        let others = others.map(|id| self.options.root.join(id));
        for directory in others.chain([own]).filter(|directory| directory.exists()) {
            if let Err(error) = Ledger::undo(&directory) {
                tracing::error!(%error, "something is left");
            }
        }
    }
}

/// Nobody is hurt when the one who asked has gone.
fn answer<T>(reply: Reply<T>, result: Result<T, Error>) {
    let _ = reply.send(result);
}
