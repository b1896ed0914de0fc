//! What takes time, away from the owner: each task does its steps and reports
//! with one [`Event`], or answers its caller itself when nothing changes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, SystemTime},
};

use casemate_hypervisor::{DeviceId, Hypervisor, Vm};
use casemate_linux::{process::Child, reactor, view::View};
use casemate_protocol::agent as message;
use oci_spec::runtime::Hooks;
use tokio::{
    io::AsyncReadExt,
    sync::mpsc::UnboundedSender,
    task::{JoinHandle, spawn_blocking, spawn_local},
    time::timeout,
};

use crate::{
    agent::{self, Agent, printable},
    container::{ExitStatus, Reply},
    disk::RootDisk,
    error::Error,
    facade::Facade,
    handle::{CgroupFiles, Create, GuestProcess},
    hooks,
    key::Key,
    ledger::Ledger,
    machine::{self, Options, Prepared, Ready},
    neighbours::{Neighbour, Neighbours},
    network,
    oom::Notice,
    owner::{Event, Farewell},
    rootfs,
    share::{Entry, Share, Taken},
    spec::{self, GuestSpec, HostPath, HostSpec},
    stand_in::{StandIn, TerminalSize},
    state::State,
    stdio::{self, Input, Outputs, Stdio},
    timeline::{Timeline, now_ns},
};

/// How long a guest may take to power off before its VM is killed.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(2);

/// How long a guest may take to write to a disk what it has kept in memory.
const WRITE_BACK_LIMIT: Duration = Duration::from_secs(60);

/// How long a monitor stays without a container to begin with.
const DESERTION: Duration = Duration::from_secs(30);

/// A bundle's configuration, read and split.
pub(crate) struct ReadBundle {
    pub(crate) oci_version: String,
    pub(crate) host: HostSpec,
    pub(crate) guest: GuestSpec,
    /// Copies of the mounts that the guest is to see.
    pub(crate) files: Vec<Taken>,
    /// The root file system, if it is no folder of the host.
    pub(crate) disk: Option<RootDisk>,
}

/// A process that the guest has made.
pub(crate) struct Made {
    pub(crate) outputs: Outputs,
    pub(crate) input: Option<Input>,
    /// What the machine was given for it.
    pub(crate) disk: Option<DeviceId>,
    pub(crate) timeline: Timeline,
}

/// What a container is made from.
pub(crate) struct Creation {
    pub(crate) key: Key,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) disk: Option<RootDisk>,
    pub(crate) agent: Agent,
    pub(crate) hybrid: PathBuf,
    pub(crate) network: network::Handle,
    pub(crate) resolver: Option<PathBuf>,
    pub(crate) guest: GuestSpec,
    pub(crate) facade: Option<Facade>,
    pub(crate) stdio: Stdio,
    pub(crate) hooks: Hooks,
    pub(crate) bundle: PathBuf,
    pub(crate) state: State,
    pub(crate) timeline: Timeline,
}

/// Now, as the state file has it.
pub(crate) fn timestamp() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

/// Reads and splits config.json and takes what it shares with the guest, all as
/// the container's creator sees it. `containers` are those of the sandbox.
pub(crate) fn read_bundle(
    create: &Create,
    view: &View,
    containers: Vec<Neighbour>,
) -> Result<ReadBundle, Error> {
    let mut bundle = within(view, || {
        read_bundle_here(create, &Neighbours::known(containers))
    })?;
    if let Some(place) = &bundle.host.rootfs
        && bundle.disk.is_none()
    {
        let place = place.as_path();
        let root = within(view, || match create.rootfs.as_slice() {
            [] => Ok(root_entry(create, place).take()?),
            mounts => {
                let tree = rootfs::assemble(mounts, place)?;
                Ok(root_entry(create, place).of(tree, true)?)
            }
        });
        bundle.files.push(root?);
    }
    Ok(bundle)
}

fn within<T: Send>(
    view: &View,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    view.within(work)
        .map_err(|error| Error::Host(format!("mount namespace of the client: {error}").into()))?
}

fn read_bundle_here(create: &Create, containers: &Neighbours) -> Result<ReadBundle, Error> {
    let path = create.bundle.join("config.json");
    let json = std::fs::read(&path)
        .map_err(|error| Error::Bundle(format!("{}: {error}", path.display()).into()))?;
    let spec = spec::parse(&json)?;
    let directory = HostPath::new(&create.bundle)
        .ok_or_else(|| Error::Bundle("the bundle's path is not absolute".into()))?;
    let bundle = spec::Bundle {
        container_id: create.id.as_str(),
        directory: &directory,
    };
    let split = spec::split(&spec, bundle, &spec::LiveHost(containers))?;
    // A sandbox container has none, whatever comes with it.
    let disk = match &split.host.rootfs {
        Some(_) => RootDisk::of(&create.rootfs)?,
        None => None,
    };
    Ok(ReadBundle {
        oci_version: spec.version().clone(),
        files: take_files(&split.host)?,
        disk,
        host: split.host,
        guest: split.guest,
    })
}

/// The root file system's.
fn root_entry<'a>(create: &Create, place: &'a Path) -> Entry<'a> {
    Entry {
        source: place,
        slot: casemate_protocol::paths::rootfs_slot(create.id.as_str()).into(),
        readonly: false,
        recursive: true,
        readonly_below: false,
        follows: false,
    }
}

/// The volumes.
fn take_files(host: &HostSpec) -> Result<Vec<Taken>, Error> {
    let volumes = host.shares.iter().map(|share| Entry {
        source: share.source.as_path(),
        slot: share.slot.as_str().into(),
        readonly: share.readonly,
        recursive: share.recursive,
        readonly_below: share.readonly_below,
        follows: share.follows,
    });
    Ok(volumes
        .map(|entry| entry.take())
        .collect::<Result<_, _>>()?)
}

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
        let ready = booted.greet(&mut timeline).await?;
        Ok((ready, timeline))
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
        let reason = machine::end_of(vm.as_ref(), &devices).await;
        report(&events, Event::Down(reason.into()));
    });
}

/// The disk, then hooks, then the guest's part, then the streams.
pub(crate) fn spawn_create(creation: Creation, events: UnboundedSender<Event>) {
    spawn_local(async move {
        let key = creation.key.clone();
        let result = create_on_disk(creation).await;
        report(&events, Event::Made(key, Box::new(result)));
    });
}

/// Plugs the disk of the root file system, if there is one: it is on its way to
/// the guest while the rest goes on.
async fn create_on_disk(mut creation: Creation) -> Result<Made, Error> {
    let Some(disk) = creation.disk.take() else {
        return create(creation).await;
    };
    let begin = now_ns();
    let vm = Arc::clone(&creation.vm);
    let (disk, device) = disk.plug(vm.as_ref()).await?;
    creation.timeline.until_now("host", "plug the disk", begin);
    creation.guest.disk = protobuf::MessageField::some(disk);
    match create(creation).await {
        Ok(made) => Ok(Made {
            disk: Some(device),
            ..made
        }),
        Err(error) => {
            unplug(vm.as_ref(), &device).await;
            Err(error)
        }
    }
}

/// Takes a disk out of the machine, when the guest does not use it any more.
async fn unplug(vm: &dyn Vm, disk: &DeviceId) {
    if let Err(error) = vm.unplug(disk).await {
        tracing::warn!(%disk, %error, "a disk stays in the machine");
    }
}

async fn create(mut creation: Creation) -> Result<Made, Error> {
    let begin = now_ns();
    let state = creation.state.to_oci_json();
    for (list, hooks) in [
        ("prestart", deprecated_prestart(&creation.hooks)),
        ("createRuntime", creation.hooks.create_runtime().as_ref()),
    ] {
        hooks::run(list, hooks, &state, &creation.bundle).await?;
    }
    let mut timeline = creation.timeline;
    if timeline_worthy(&creation.hooks) {
        timeline.until_now("host", "hooks", begin);
    }
    // Hooks may have set it up.
    let resolver = creation.resolver.clone();
    let mut timeline = creation.network.update(resolver, timeline).await?;
    let begin = now_ns();
    let request = message::CreateContainerRequest {
        container_id: creation.key.container.to_string(),
        spec: protobuf::MessageField::some(std::mem::take(&mut creation.guest)),
        ..Default::default()
    };
    let stdio = std::mem::take(&mut creation.stdio);
    let attached = attach(&creation.key, &creation.hybrid, stdio);
    let made = creation.agent.create_container(&request);
    let (response, attached) = together(made, attached).await?;
    timeline.add_guest("agent", &response.spans);
    timeline.until_now("host", "create in the guest", begin);
    let (outputs, input) = match attached {
        Ok(attached) => attached,
        Err(error) => {
            // The guest has the container already.
            let _ = creation
                .agent
                .remove_container(&creation.key.container())
                .await;
            return Err(error);
        }
    };
    let begin = now_ns();
    if let Some(Err(error)) = creation.facade.map(|facade| facade.show()) {
        tracing::warn!(container = %creation.key, %error, "clients do not see its files");
    }
    timeline.until_now("host", "show its files", begin);
    Ok(Made {
        outputs,
        input,
        disk: None,
        timeline,
    })
}

/// Makes a process and attaches its streams meanwhile: the guest answers them
/// when the process is there. Without it they are let go.
async fn together<T, E: Into<Error>>(
    made: impl Future<Output = Result<T, E>>,
    attached: impl Future<Output = Result<(Outputs, Option<Input>), Error>>,
) -> Result<(T, Result<(Outputs, Option<Input>), Error>), Error> {
    tokio::pin!(made, attached);
    tokio::select! {
        made = &mut made => Ok((made.map_err(E::into)?, attached.await)),
        attached = &mut attached => Ok((made.await.map_err(E::into)?, attached)),
    }
}

/// Deprecated by the spec, used by Docker and Podman.
fn deprecated_prestart(hooks: &Hooks) -> Option<&Vec<oci_spec::runtime::Hook>> {
    hooks.prestart().as_ref()
}

fn timeline_worthy(hooks: &Hooks) -> bool {
    deprecated_prestart(hooks).is_some() || hooks.create_runtime().is_some()
}

async fn attach(
    key: &Key,
    hybrid: &std::path::Path,
    stdio: Stdio,
) -> Result<(Outputs, Option<Input>), Error> {
    Ok(stdio::attach(hybrid, key.container.as_str(), key.exec_id(), stdio).await?)
}

/// Adds a process to a container and lets it run; it is killed when its streams
/// cannot be attached.
pub(crate) fn spawn_exec(
    key: Key,
    agent: Agent,
    hybrid: PathBuf,
    process: message::Process,
    stdio: Stdio,
    events: UnboundedSender<Event>,
) {
    let work = async move |key: &Key| {
        let request = message::AddProcessRequest {
            container_id: key.container.to_string(),
            exec_id: key.exec_id().to_owned(),
            process: protobuf::MessageField::some(process),
            streams: protobuf::MessageField::some(stdio.wanted()),
            start: true,
            ..Default::default()
        };
        let attached = attach(key, &hybrid, stdio);
        let (_, attached) = together(agent.add_process(&request), attached).await?;
        let (outputs, input) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                spawn_kill(key.clone(), agent);
                return Err(error);
            }
        };
        Ok(Made {
            outputs,
            input,
            disk: None,
            // A container may have any number of execs.
            timeline: Timeline::default(),
        })
    };
    spawn_local(async move {
        let result = work(&key).await;
        report(&events, Event::Made(key, Box::new(result)));
    });
}

/// How long the hooks in the guest may take, in all.
pub(crate) fn hook_time(guest: &GuestSpec) -> Duration {
    let seconds = guest
        .start_hooks
        .iter()
        .map(|hook| u64::from(hook.timeout_s));
    Duration::from_secs(seconds.sum())
}

/// Lets a container's process run; its hooks have `hook_time` beside the agent's own limit.
pub(crate) fn spawn_start(
    key: Key,
    agent: Agent,
    hook_time: Duration,
    network: network::Handle,
    timeline: Timeline,
    reply: Reply<u32>,
    events: UnboundedSender<Event>,
) {
    let work = async move |key: &Key| {
        // Docker sets it up between create and start, since version 28.
        let mut timeline = network.update(None, timeline).await?;
        let begin = now_ns();
        let agent = agent.with_more_time(hook_time);
        let response = agent.start_process(&key.process()).await?;
        timeline.add_guest("container", &response.spans);
        timeline.until_now("host", "start in the guest", begin);
        Ok(timeline)
    };
    spawn_local(async move {
        let result = work(&key).await;
        report(&events, Event::Started(key, result, reply));
    });
}

/// Waits for the end of a process, then for the end of its output, which goes on
/// after `patience`, if there is one. A guest that cannot say when its process
/// ends is of no use: its VM goes, and the machine's watch reports that.
pub(crate) fn spawn_wait(
    key: Key,
    ready: &Ready,
    mut outputs: Outputs,
    patience: Option<Duration>,
    notice: Rc<Notice>,
    events: UnboundedSender<Event>,
) {
    let agent = ready.agent.clone();
    let vm = Arc::clone(&ready.vm);
    spawn_local(async move {
        let response = match agent.wait_process(&key.process()).await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(process = %key, %error, "cannot wait for it, ending the machine");
                return vm.kill();
            }
        };
        if response.oom_killed {
            tell(key.container.as_str(), &notice).await;
        }
        let exit = ExitStatus::now(response.exit_status);
        match patience {
            // Whoever does not read must not keep the process from ending.
            Some(patience) => _ = timeout(patience, outputs.drained()).await,
            None => outputs.drained().await,
        }
        report(&events, Event::Ended(key, exit));
        outputs.drained().await;
    });
}

/// Tells a container's client when the guest has killed one of its processes for
/// want of memory; the container may live on.
pub(crate) fn spawn_memory_watch(key: &Key, agent: Agent, notice: Rc<Notice>) {
    let container = key.container();
    spawn_local(async move {
        // Else it has ended, or the machine has: there is nothing to tell.
        if let Ok(true) = agent.await_out_of_memory(&container).await {
            tell(&container.container_id, &notice).await;
        }
    });
}

async fn tell(container: &str, notice: &Notice) {
    tracing::warn!(container, "the guest ran out of memory for it");
    if let Err(error) = notice.tell().await {
        tracing::warn!(container, %error, "its client is not told of that");
    }
}

/// Hears what the stand-in of a process reports, until it ends.
/// One that is a child of ours is reaped then.
pub(crate) fn spawn_stand_in_watch(
    key: Key,
    stand_in: &StandIn,
    child: Option<Child>,
    events: UnboundedSender<Event>,
) {
    let reports = stand_in.reports().and_then(|socket| {
        socket.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(socket)
    });
    let mut reports = match reports {
        Ok(reports) => reports,
        Err(error) => return tracing::error!(process = %key, %error, "stand-in is not watched"),
    };
    spawn_local(async move {
        let mut size = [0; 4];
        while reports.read_exact(&mut size).await.is_ok() {
            let size = TerminalSize::from_bytes(size);
            report(&events, Event::TerminalSize(key.clone(), size));
        }
        report(&events, Event::StandInGone(key));
        if let Some(child) = child
            && let Err(error) = reap(&child).await
        {
            tracing::warn!(pid = child.pid(), %error, "a stand-in cannot be reaped");
        }
    });
}

/// Waits for the end of a child without standing in anybody's way.
async fn reap(child: &Child) -> std::io::Result<()> {
    let pidfd = child.pidfd().try_clone_to_owned()?;
    reactor::register_readable(pidfd)?
        .readable()
        .await?
        .retain_ready();
    child.try_wait().map(drop)
}

/// Kills a process without being asked twice; an init with its container.
pub(crate) fn spawn_kill(key: Key, agent: Agent) {
    spawn_local(async move {
        let request = signal_request(&key, nix::libc::SIGKILL as u32, key.exec.is_none());
        if let Err(error) = agent.signal_process(&request).await {
            tracing::warn!(process = %key, %error, "cannot kill");
        }
    });
}

/// Sends a signal.
pub(crate) fn spawn_signal(key: &Key, agent: Agent, signal: u32, all: bool, reply: Reply<()>) {
    let request = signal_request(key, signal, all);
    spawn_local(async move {
        let result = agent.signal_process(&request).await;
        let _ = reply.send(result.map(drop).map_err(Error::from));
    });
}

fn signal_request(key: &Key, signal: u32, all: bool) -> message::SignalProcessRequest {
    message::SignalProcessRequest {
        container_id: key.container.to_string(),
        exec_id: key.exec_id().to_owned(),
        signal,
        all,
        ..Default::default()
    }
}

/// Sets the size of a terminal.
pub(crate) fn spawn_resize(key: &Key, agent: Agent, columns: u32, rows: u32, reply: Reply<()>) {
    let request = message::ResizeTerminalRequest {
        container_id: key.container.to_string(),
        exec_id: key.exec_id().to_owned(),
        columns,
        rows,
        ..Default::default()
    };
    spawn_local(async move {
        let result = agent.resize_terminal(&request).await;
        let _ = reply.send(result.map(drop).map_err(Error::from));
    });
}

/// Lists the processes of a container. `host_pids` are those of the stand-ins
/// by exec id, "" for the init.
pub(crate) fn spawn_list(
    key: &Key,
    agent: Agent,
    host_pids: BTreeMap<String, u32>,
    reply: Reply<Vec<GuestProcess>>,
) {
    let request = key.container();
    spawn_local(async move {
        let result = agent.list_processes(&request).await;
        let processes = result.map_err(Error::from).map(|response| {
            let processes = response.processes.into_iter();
            processes
                .map(|process| GuestProcess {
                    pid: process.pid,
                    parent: process.parent,
                    uid: process.uid,
                    started_at_ns: process.started_at_ns,
                    cpu_ns: process.cpu_ns,
                    terminal: process.terminal,
                    command: printable(&process.command),
                    host_pid: process
                        .exec_id
                        .as_ref()
                        .and_then(|exec| host_pids.get(exec).copied()),
                    exec: process.exec_id.filter(|exec| host_pids.contains_key(exec)),
                })
                .collect()
        });
        let _ = reply.send(processes);
    });
}

/// Stops the processes of a container, or lets them go on.
pub(crate) fn spawn_freeze(
    key: Key,
    agent: Agent,
    frozen: bool,
    reply: Reply<()>,
    events: UnboundedSender<Event>,
) {
    let request = message::FreezeContainerRequest {
        container_id: key.container.to_string(),
        frozen,
        ..Default::default()
    };
    spawn_local(async move {
        let result = agent.freeze_container(&request).await;
        let result = result.map(drop).map_err(Error::from);
        report(&events, Event::Frozen(key, frozen, result, reply));
    });
}

/// Changes the settings of a container's cgroup in the guest.
pub(crate) fn spawn_update(
    key: &Key,
    agent: Agent,
    settings: BTreeMap<String, String>,
    reply: Reply<()>,
) {
    let request = message::UpdateContainerRequest {
        container_id: key.container.to_string(),
        settings: settings.into_iter().collect(),
        ..Default::default()
    };
    spawn_local(async move {
        let result = agent.update_container(&request).await;
        let _ = reply.send(result.map(drop).map_err(Error::from));
    });
}

/// Reads what a container has used.
pub(crate) fn spawn_stats(key: &Key, agent: Agent, reply: Reply<CgroupFiles>) {
    let request = key.container();
    spawn_local(async move {
        let result = agent.container_stats(&request).await;
        let files = result.map(|response| response.files.into_iter().collect());
        let _ = reply.send(files.map_err(Error::from));
    });
}

/// Lets the guest forget an ended exec.
pub(crate) fn spawn_forget(key: &Key, agent: Agent) {
    let request = key.process();
    spawn_local(async move {
        if let Err(error) = agent.remove_process(&request).await {
            tracing::warn!(%error, "the guest did not forget a process");
        }
    });
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
}

/// The last steps of a container: the guest lets go, then the host, then the
/// hooks run and the ledger is undone.
pub(crate) fn spawn_removal(remains: Remains, events: UnboundedSender<Event>) {
    spawn_local(async move {
        let key = &remains.key;
        leave_guest(&remains).await;
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
        report(&events, Event::Removed(remains.farewell));
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

/// Hooks after the start; what they do wrong is only logged.
pub(crate) fn spawn_poststart(hooks: Hooks, state: State) {
    spawn_local(async move {
        let json = state.to_oci_json();
        if let Err(error) = hooks::run(
            "poststart",
            hooks.poststart().as_ref(),
            &json,
            &state.bundle,
        )
        .await
        {
            tracing::warn!(container = state.id, %error, "after start");
        }
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

/// Without an owner the sandbox is ending, and news are of no use.
fn report(events: &UnboundedSender<Event>, event: Event) {
    let _ = events.send(event);
}
