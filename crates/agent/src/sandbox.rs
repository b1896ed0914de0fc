//! The sandbox as the agent sees it: what the service's calls act on.
//!
//! ```text
//!             PrepareSandbox          Shutdown, or the host is gone
//!   greeted ────────────────► ready ───────────────────────────────► ending
//! ```

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use casemate_protocol::{
    agent::{
        AddProcessRequest, ContainerSpec, CreateContainerRequest, Identity, PrepareSandboxRequest,
        ProcessRef, Span, UpdateNetworkRequest,
    },
    stream::StreamHello,
};
use tokio::sync::Notify;

use crate::{
    ahead::Ahead,
    arrival::Subscription,
    capacity::Capacity,
    child::{namespaces::Plan, sysctl},
    console::say,
    container::{Container, Process, birth},
    disks::Disk,
    error::{Doing, Error, Result},
    identity, limits,
    network::Network,
    reaper::Reaper,
    share,
    shared_memory::SharedMemory,
    streams::Pump,
    timeline::{Timeline, now, realtime, span},
    transport::Transport,
};

/// How long the end of all processes, and the writing back of all file
/// systems, may take before the VM is powered off anyway. Where there are no
/// disks, the host does not wait as long.
const END_LIMIT: Duration = Duration::from_secs(60);

/// How long an answer is given to leave before the thread does something else.
const ANSWER_TIME: Duration = Duration::from_millis(1);

/// The containers of this VM. About the lock, see [`Reaper`].
#[derive(Debug)]
pub(crate) struct Sandbox {
    reaper: Arc<Reaper>,
    transport: Transport,
    state: Mutex<State>,
    /// Told whenever a container or process has been made, or has not.
    settled: Notify,
    /// Held while an update waits for cards: one after the other.
    network: tokio::sync::Mutex<Network>,
}

#[derive(Debug, Default)]
struct State {
    prepared: bool,
    ahead: Ahead,
    /// Let go when the host has been answered.
    subscription: Option<Subscription>,
    ending: bool,
    /// What [`Sandbox::complete`] has done since a start last asked.
    completed: Vec<Span>,
    containers: HashMap<String, Slot>,
    shared_memory: SharedMemory,
}

/// An id is taken while its container is being made or removed.
#[derive(Debug)]
enum Slot {
    Reserved,
    Made(Arc<Container>),
}

impl Sandbox {
    pub(crate) fn new(reaper: Arc<Reaper>, transport: Transport) -> Self {
        Self {
            reaper,
            state: Mutex::default(),
            settled: Notify::new(),
            network: tokio::sync::Mutex::new(Network::new(transport.clone())),
            transport,
        }
    }

    /// Makes this VM one that can be saved and be resumed as many; tells over which
    /// device it has called the host ([`Transport::device`]).
    pub(crate) fn get_ahead(&self) -> Result<Option<u64>> {
        let mut state = self.state();
        if state.prepared {
            return Err(Error::AlreadyPrepared);
        }
        state.ahead.get()?;
        self.transport.device()
    }

    /// Keeps what nobody needs any more until there is time to let it go.
    pub(crate) fn put_off(&self, subscription: Option<Subscription>) {
        self.state().subscription = subscription;
    }

    /// Makes this VM the one of a sandbox.
    pub(crate) async fn prepare(
        self: Arc<Self>,
        request: PrepareSandboxRequest,
    ) -> Result<(Identity, Vec<Span>)> {
        let received_ns = now();
        let mut timeline = Timeline::since(received_ns);
        limits::prepare(&request)?;
        {
            let mut state = self.state();
            if state.prepared {
                return Err(Error::AlreadyPrepared);
            }
            state.prepared = true;
        }
        let identity = identity::assume(&request, received_ns)?;
        timeline.mark("identity");
        for wanted in &request.mounts {
            share::mount_in_guest(wanted).await?;
        }
        sysctl::write_all(&request.sysctls)?;
        timeline.mark("mounts");
        let zones = self.state().ahead.zones();
        let capacity = Capacity::reach(request.vcpus, request.memory_mib, zones).await?;
        timeline.mark("capacity");
        let identity = Identity {
            cid: self.transport.cid()?.unwrap_or(0).into(),
            vcpus: capacity.vcpus,
            memory_mib: capacity.memory_mib,
            realtime_ns: realtime(),
            ..identity
        };
        Ok((identity, timeline.into_spans()))
    }

    /// Makes a container; its first process waits before exec.
    pub(crate) async fn create(
        self: Arc<Self>,
        mut request: CreateContainerRequest,
    ) -> Result<(u32, Vec<Span>)> {
        let id = &request.container_id;
        limits::id("container id", id)?;
        limits::container(&request.spec)?;
        let plan = self.plan(&request)?;
        self.reserve(id)?;
        let spec = request.spec.mut_or_insert_default();
        match self.make(id, spec, plan).await {
            Ok((container, spans)) => {
                let pid = container.init.pid;
                let container = Arc::new(container);
                self.settle(id, Some(Arc::clone(&container)));
                tokio::spawn(self.complete_soon(container));
                Ok((pid, spans))
            }
            Err(error) => {
                self.settle(id, None);
                Err(error)
            }
        }
    }

    /// Makes a container whose id is reserved.
    async fn make(
        &self,
        id: &str,
        spec: &mut ContainerSpec,
        plan: Plan,
    ) -> Result<(Container, Vec<Span>)> {
        self.state().shared_memory.provide(id, &mut spec.mounts)?;
        let Some(wanted) = spec.disk.as_ref() else {
            return self.bear(id, spec, plan).await;
        };
        let began = now();
        let disk = Disk::mount(wanted, &self.reaper).await?;
        spec.rootfs = disk.place().to_string_lossy().into_owned();
        let mounted = span("disk", began, now());
        match self.bear(id, spec, plan).await {
            Ok((mut container, mut spans)) => {
                container.disk = Some(disk);
                spans.insert(0, mounted);
                Ok((container, spans))
            }
            Err(error) => {
                disk.release(&self.reaper).await?;
                Err(error)
            }
        }
    }

    async fn bear(
        &self,
        id: &str,
        spec: &ContainerSpec,
        plan: Plan,
    ) -> Result<(Container, Vec<Span>)> {
        // Nobody in it may see where it is, and who only waits needs none.
        let spare = match plan.makes_cgroup() && !spec.pause {
            true => self.state().ahead.spare(),
            false => None,
        };
        birth::create(id, spec, plan, spare, &self.reaper).await
    }

    /// Ends every process of a container and lets go what it was made of.
    async fn clear(&self, container: &Container) -> Result<()> {
        // An earlier attempt may have got as far as the disk.
        if container.cgroup.path().exists() {
            container.cgroup.remove().await?;
        }
        match &container.disk {
            Some(disk) => disk.release(&self.reaper).await,
            None => Ok(()),
        }
    }

    /// Completes a container while the host is on its way to start it.
    async fn complete_soon(self: Arc<Self>, container: Arc<Container>) {
        tokio::time::sleep(ANSWER_TIME).await;
        self.put_off(None);
        if let Err(error) = self.complete(&container) {
            // Whoever starts it will be told.
            say(format_args!("container {}: {error}", container.id));
        }
    }

    /// What no program may run without, but no answer has to wait for: done
    /// between the making of a container and its start, or by the start if
    /// that comes at once.
    fn complete(&self, container: &Container) -> Result<()> {
        let began = now();
        let mut state = self.state();
        let guarded = container.guard()?;
        if state.ahead.connect()? || guarded {
            state.completed.push(span("complete", began, now()));
        }
        Ok(())
    }

    /// Has a process execute its program.
    pub(crate) async fn start(self: Arc<Self>, of: ProcessRef) -> Result<Vec<Span>> {
        let (container, process) = self.process(&of)?;
        self.complete(&container)?;
        let mut spans = std::mem::take(&mut self.state().completed);
        spans.push(process.start().await?);
        Ok(spans)
    }

    /// Adds a process to a container; it waits before exec unless it is to start.
    pub(crate) async fn add(
        self: Arc<Self>,
        request: AddProcessRequest,
    ) -> Result<(u32, Vec<Span>)> {
        let mut timeline = Timeline::since(now());
        let exec = &request.exec_id;
        limits::id("exec id", exec)?;
        limits::process(&request.process)?;
        let container = self.container(&request.container_id)?;
        if container.init.end.known().is_some() {
            return Err(Error::Stopped(container.id.clone()));
        }
        self.complete(&container)?;
        container.reserve(exec, &request.process.args[0])?;
        let added = birth::add(&container, &request.process, &request.streams, &self.reaper).await;
        container.settle(exec, added.as_ref().ok().map(Arc::clone));
        self.settled.notify_waiters();
        let process = added?;
        timeline.mark("make");
        let mut spans = timeline.into_spans();
        if request.start {
            match process.start().await {
                Ok(span) => spans.push(span),
                Err(error) => {
                    container.settle(exec, None);
                    return Err(error);
                }
            }
        }
        Ok((process.pid, spans))
    }

    /// Makes the network what the request says.
    pub(crate) async fn update_network(
        self: Arc<Self>,
        request: UpdateNetworkRequest,
    ) -> Result<Vec<Span>> {
        self.network.lock().await.update(request).await
    }

    /// Kills what is left of a container and forgets it.
    pub(crate) async fn remove(self: Arc<Self>, id: String) -> Result<()> {
        let container = self.container(&id)?;
        self.state().containers.insert(id.clone(), Slot::Reserved);
        let removed = self.clear(&container).await;
        if let Err(error) = share::forget_unused_files() {
            say(format_args!("container {id}: {error}"));
        }
        // What could not be removed can be tried again.
        self.settle(&id, removed.is_err().then_some(container));
        removed
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.state().containers.get(id) {
            Some(Slot::Made(container)) => Ok(Arc::clone(container)),
            Some(Slot::Reserved) => Err(Error::Busy(id.to_owned())),
            None => Err(Error::NoContainer(id.to_owned())),
        }
    }

    /// A process and its container.
    pub(crate) fn process(&self, of: &ProcessRef) -> Result<(Arc<Container>, Arc<Process>)> {
        let container = self.container(&of.container_id)?;
        let process = container.process(&of.exec_id)?;
        Ok((container, process))
    }

    /// A stream of a process, for the connection that asks for it, which may
    /// come before its process is made.
    pub(crate) async fn stream(&self, hello: &StreamHello) -> Option<Pump> {
        let of = ProcessRef {
            container_id: hello.container_id.clone(),
            exec_id: hello.exec_id.clone(),
            ..Default::default()
        };
        let stream = hello.stream.enum_value().ok()?;
        loop {
            // From here on no change is missed.
            let settled = self.settled.notified();
            if let Ok((_, process)) = self.process(&of) {
                return process.streams.take(stream);
            }
            settled.await;
        }
    }

    /// Ends every process and writes everything back; what takes too long is
    /// left behind. Nothing can be made afterwards.
    pub(crate) async fn end(&self) {
        let containers: Vec<_> = {
            let mut state = self.state();
            state.ending = true;
            state.containers.drain().collect()
        };
        let emptied = async {
            for (_, slot) in &containers {
                if let Slot::Made(container) = slot
                    && let Err(error) = self.clear(container).await
                {
                    say(format_args!("container {}: {error}", container.id));
                }
            }
            share::write_back(&self.reaper).await;
        };
        if tokio::time::timeout(END_LIMIT, emptied).await.is_err() {
            say(format_args!("the sandbox did not end within {END_LIMIT:?}"));
        }
    }

    fn reserve(&self, id: &str) -> Result<()> {
        let mut state = self.state();
        if state.ending {
            return Err(Error::Ending);
        }
        if state.containers.contains_key(id) {
            return Err(Error::ContainerExists(id.to_owned()));
        }
        if state.containers.len() == limits::CONTAINERS {
            return Err(Error::Limit {
                what: "containers",
                count: state.containers.len() + 1,
                most: limits::CONTAINERS,
            });
        }
        state.containers.insert(id.to_owned(), Slot::Reserved);
        Ok(())
    }

    /// Puts the container where its id was reserved, or frees the id.
    fn settle(&self, id: &str, container: Option<Arc<Container>>) {
        let mut state = self.state();
        match container {
            Some(container) => {
                let made = Slot::Made(container);
                state.containers.insert(id.to_owned(), made);
            }
            None => {
                state.containers.remove(id);
                state.shared_memory.release(id);
            }
        }
        drop(state);
        self.settled.notify_waiters();
    }

    /// What namespaces the container makes, and whose it joins.
    fn plan(&self, request: &CreateContainerRequest) -> Result<Plan> {
        let mut plan = Plan::default();
        for namespace in &request.spec.namespaces {
            let kind = namespace.kind.enum_value_or_default();
            match namespace.of_container.as_str() {
                "" => plan.make(kind),
                other => plan.join(kind, self.running(other)?),
            }
        }
        plan.provide()?;
        Ok(plan)
    }

    /// A pidfd of a container's running first process.
    fn running(&self, id: &str) -> Result<OwnedFd> {
        let init = &self.container(id)?.init;
        if init.end.known().is_some() {
            return Err(Error::Stopped(id.to_owned()));
        }
        init.pidfd.try_clone().doing(|| "copy a descriptor".into())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
