//! A new container, from the command line's side: what `create` and `run` share.
//!
//! In order: the bundle is read and refused if it is bad, and says in whose
//! sandbox the container will be; the directories are claimed; the stand-in is
//! made, and with a sandbox of its own the monitor; the monitor creates the
//! container. Until the end a guard undoes everything.

mod terminal;

use std::{
    fs,
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use casemate_config::Config;
use casemate_linux::{process::Child, view::View};
use casemate_sandbox::{
    cgroup::Cgroup,
    claim::Claim,
    neighbours::Neighbours,
    processes::{MonitorProcess, MonitorStart, StandInProcess, StandInStart},
    settings::Settings,
    size::HostSize,
    spec::{self, Bundle, HostPath, HostSpec, LiveHost, NetworkNamespace},
    stand_in::{self, Announcement, OUTLIVED},
    timeline::begin_of_process_ns,
};

use crate::{
    arguments::{Create, Global},
    client::{Monitor, Place, block_on},
};

pub use terminal::OwnTerminal;

/// A created container whose process waits for the start.
pub struct Launched {
    /// Its place on the host.
    pub place: Place,
    /// How its end is heard of.
    pub ending: Ending,
    /// Our own terminal, when the container uses it; restored when dropped.
    pub terminal: Option<OwnTerminal>,
}

/// How the end of a process is heard of, and its exit status.
pub enum Ending {
    /// A child of ours ends with it.
    StandIn(Child),
    /// The monitor tells us, as it would a stand-in.
    Told(UnixStream),
}

/// Creates a container; `foreground` when this process will wait for its end.
///
/// # Errors
/// One line that says why; nothing is left then.
pub fn launch(global: &Global, arguments: &Create, foreground: bool) -> Result<Launched> {
    let begun_ns = begin_of_process_ns();
    let place = Place::of(global, &arguments.id)?;
    let config = Config::load(global.config.as_deref())?;
    let bundle = fs::canonicalize(&arguments.bundle)
        .with_context(|| format!("bundle {}", arguments.bundle.display()))?;
    let neighbours = Neighbours::under(place.root());
    let host = read_bundle(&place, &bundle, &neighbours)?;
    refuse(global, arguments, &host, foreground)?;
    // Those of a container that joins a sandbox come too late to change that, but
    // not to be wrong.
    let Settings {
        config,
        template,
        warnings,
    } = Settings::new(config, &host, HostSize::now())?;
    let home = neighbours.home(&host)?.map(|other| other.sandbox.as_path());
    let claim = Claim::of(place.root(), &place.id, home)?;
    let streams = terminal::streams(arguments.console_socket.as_deref(), host.terminal)?;
    let netns = match &host.network {
        NetworkNamespace::New => None,
        NetworkNamespace::Path(path) => Some(path.as_path().to_owned()),
        NetworkNamespace::Of(other) => Some(other.path.as_path().to_owned()),
    };
    let stand_in = StandInProcess::spawn(StandInStart {
        id: &place.id,
        netns: netns.as_deref(),
        terminal: streams.controlling.as_ref().map(AsFd::as_fd),
        command: &host.command,
    })?;
    let monitor = match home {
        Some(_) => None,
        None => {
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            Some(MonitorProcess::spawn(MonitorStart {
                id: &place.id,
                root: place.root(),
                sandbox: &claim.sandbox,
                netns: Some(&netns.unwrap_or_else(|| stand_in.netns())),
                hostname: host.hostname.as_deref().unwrap_or(place.id.as_str()),
                cgroup: host.cgroups_path.as_deref(),
                config: &config,
                template,
                debug: global.debug,
                begun_ns,
                containerd: None,
            })?)
        }
    };
    let ready = monitor
        .as_ref()
        .map_or(Ok(()), |new| Ok(new.await_readiness()?));
    let created = ready
        .and_then(|()| announce(&place, None, &stand_in, streams.client))
        .and_then(|()| create(&place, &bundle, host.terminal))
        .and_then(|()| Ok(stand_in.await_readiness()?))
        .and_then(|()| write_pid_file(arguments.pid_file.as_deref(), stand_in.pid()));
    if let Err(error) = created {
        if let Some(monitor) = monitor {
            monitor.end();
        }
        stand_in.end();
        drop(claim);
        return Err(error);
    }
    claim.keep();
    Ok(Launched {
        place,
        ending: Ending::StandIn(stand_in.release()),
        terminal: streams.own,
    })
}

/// A process that is to be added to a running container.
pub struct Addition<'a> {
    /// The container.
    pub place: &'a Place,
    /// Process id of the container's own stand-in, whose network is joined.
    pub init_pid: u32,
    /// Id of the process.
    pub exec: &'a str,
    /// OCI process as JSON.
    pub process: Vec<u8>,
    /// Its arguments, for who lists the host's processes.
    pub command: &'a [String],
    /// The process has a terminal.
    pub terminal: bool,
    /// Who gets its master.
    pub console_socket: Option<&'a Path>,
    /// Where the process id of its stand-in goes.
    pub pid_file: Option<&'a Path>,
    /// This process will wait for its end.
    pub foreground: bool,
}

/// Adds a process to a container and lets it run.
///
/// # Errors
/// One line that says why; nothing of the process is left then.
pub fn add(addition: Addition<'_>) -> Result<Launched> {
    let Addition {
        place,
        exec,
        terminal,
        ..
    } = addition;
    if addition.foreground && addition.pid_file.is_none() && !terminal {
        return add_without_stand_in(addition);
    }
    let streams = terminal::streams(addition.console_socket, terminal)?;
    let netns = PathBuf::from(format!("/proc/{}/ns/net", addition.init_pid));
    let stand_in = StandInProcess::spawn(StandInStart {
        id: &place.id,
        netns: Some(&netns),
        terminal: streams.controlling.as_ref().map(AsFd::as_fd),
        command: addition.command,
    })?;
    // The guest makes the process while the stand-in shuts itself in.
    let added = announce(place, Some(exec), &stand_in, streams.client)
        .and_then(|()| {
            block_on(async {
                let monitor = Monitor::connect(place)?;
                monitor.exec(exec, addition.process, terminal).await?;
                // Clients look for the file once the process runs.
                write_pid_file(addition.pid_file, stand_in.pid())?;
                monitor.start(exec).await.map(drop)
            })
        })
        .and_then(|()| Ok(stand_in.await_readiness()?));
    if let Err(error) = added {
        // The monitor kills and forgets a process whose stand-in goes.
        stand_in.end();
        return Err(error);
    }
    Ok(Launched {
        place: place.clone(),
        ending: Ending::StandIn(stand_in.release()),
        terminal: streams.own,
    })
}

/// The same where nobody but this process waits for the end: it stands for the
/// other itself.
fn add_without_stand_in(addition: Addition<'_>) -> Result<Launched> {
    let Addition { place, exec, .. } = addition;
    let streams = terminal::streams(None, false)?;
    let (control, mut told) = UnixStream::pair().context("socket pair")?;
    let ourselves = StandsFor {
        pid: std::process::id(),
        control: control.as_fd(),
        is_caller: true,
    };
    announce(place, Some(exec), ourselves, streams.client)?;
    drop(control);
    block_on(async {
        let monitor = Monitor::connect(place)?;
        monitor.exec(exec, addition.process, false).await?;
        monitor.start(exec).await
    })?;
    // One that has ended already needs no word.
    let _ = told.write_all(&OUTLIVED);
    Ok(Launched {
        place: place.clone(),
        ending: Ending::Told(told),
        terminal: None,
    })
}

/// Reads the bundle only to refuse a bad one before anything is touched; the
/// monitor reads it again for itself.
fn read_bundle(place: &Place, bundle: &Path, neighbours: &Neighbours) -> Result<HostSpec> {
    let path = bundle.join("config.json");
    let json = fs::read(&path).with_context(|| path.display().to_string())?;
    let spec = spec::parse(&json).with_context(|| path.display().to_string())?;
    let directory = HostPath::new(bundle).context("a canonical path is absolute")?;
    let bundle = Bundle {
        container_id: place.id.as_str(),
        directory: &directory,
    };
    Ok(spec::host_spec(&spec, bundle, &LiveHost(neighbours))?)
}

/// What runc refuses as well, and what cannot be in a VM.
fn refuse(global: &Global, arguments: &Create, host: &HostSpec, foreground: bool) -> Result<()> {
    ensure!(
        arguments.preserve_fds == 0,
        "--preserve-fds {}: descriptors of the host cannot enter a virtual machine",
        arguments.preserve_fds
    );
    if let Some(path) = &host.cgroups_path {
        let scope = path.contains(':');
        ensure!(
            scope || !global.systemd_cgroup,
            "--systemd-cgroup: expected cgroupsPath to be of format \"slice:prefix:name\" for \
             systemd cgroups, got {path:?} instead"
        );
        Cgroup::check(path)?;
    }
    let socket = arguments.console_socket.is_some();
    ensure!(
        !host.terminal || socket || foreground,
        "cannot allocate tty if casemate will detach without setting console socket"
    );
    ensure!(
        !socket || (host.terminal && !foreground),
        "cannot use console socket if casemate will not detach or allocate tty"
    );
    Ok(())
}

/// Who stands for a process.
struct StandsFor<'a> {
    pid: u32,
    control: BorrowedFd<'a>,
    is_caller: bool,
}

impl<'a> From<&'a StandInProcess> for StandsFor<'a> {
    fn from(process: &'a StandInProcess) -> Self {
        Self {
            pid: process.pid(),
            control: process.control(),
            is_caller: false,
        }
    }
}

fn announce<'a>(
    place: &Place,
    exec: Option<&str>,
    who: impl Into<StandsFor<'a>>,
    client: [Option<OwnedFd>; 3],
) -> Result<()> {
    let who = who.into();
    let announcement = Announcement {
        container: place.id.to_string(),
        exec: exec.map(str::to_owned),
        pid: who.pid,
        is_caller: who.is_caller,
        streams: client.each_ref().map(Option::is_some),
    };
    let mut descriptors = vec![who.control];
    descriptors.extend(client.iter().flatten().map(AsFd::as_fd));
    let view = match exec {
        None => Some(View::own().context("mount namespace")?),
        Some(_) => None,
    };
    descriptors.extend(view.iter().flat_map(View::descriptors));
    stand_in::announce(&place.sandbox()?, &announcement, &descriptors)
        .with_context(|| format!("monitor of container {:?}", place.id.as_str()))
}

fn create(place: &Place, bundle: &Path, terminal: bool) -> Result<()> {
    block_on(async {
        let monitor = Monitor::connect(place)?;
        monitor.create(bundle, terminal).await.map(drop)
    })
}

/// Written under another name first: who sees the file sees the whole number.
fn write_pid_file(path: Option<&Path>, pid: u32) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let name = path.file_name().context("--pid-file names no file")?;
    let temporary = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let write = || {
        let mut file = fs::File::create(&temporary)?;
        write!(file, "{pid}")?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("pid file {}", path.display()))
}
