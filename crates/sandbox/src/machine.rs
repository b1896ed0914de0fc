//! From nothing to a VM whose agent answers, in phases that are consumed:
//!
//! ```text
//! Prepared ──boot──► Booted ──greet──► Ready
//!  ledger, share,     device process,   agent connected,
//!  sockets            VMM running       share mounted in
//!                                       the guest
//! ```
//!
//! An error in a phase drops what it held, which ends the processes; the rest
//! is in the ledger.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use casemate_config::Config;
use casemate_hypervisor::{
    BootSpec, ConsoleLog, FileShare, Hypervisor, Identity, Parameter, Vm, Vsock,
};
use casemate_linux::socket;
use casemate_protocol::{HOST_CONTROL_PORT, HOST_NAMES_PORT, SHARE_TAG, agent as message, paths};
use nix::time::{ClockId, clock_gettime};
use tokio::{net::UnixListener, time::timeout};
use ttrpc::asynchronous::transport::Socket;

use crate::{
    agent::{self, Agent},
    cgroup::{self, Cgroup},
    device_process::{self, DeviceProcess},
    handle::News,
    identifier::Id,
    ledger::{self, Ledger},
    network::{self, Claim, Namespace},
    pod_files::PodFiles,
    share::{self, Share},
    timeline::{Timeline, now_ns},
};

/// The guest's console output, for people.
pub const CONSOLE_LOG: &str = "console.log";

/// Directory of the hybrid vsock sockets.
const VSOCK_DIRECTORY: &str = "vsock";
/// The hybrid socket itself (`CONNECT <port>`).
const HYBRID_SOCKET: &str = "vm.vsock";

/// How long a VMM that has hung up may take to end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// User and group ids of VMMs start here; the monitor's pid is added, so that
/// no two running VMMs are the same user. Outside the ranges that login tools
/// and subordinate ids use by default.
const VMM_ID_BASE: u32 = 0x7000_0000;

/// Context id of the guest; each VM has a vsock device of its own, so they need
/// not differ.
const GUEST_CID: u64 = 3;

/// What a sandbox starts from.
#[derive(Debug, Clone)]
pub struct Options {
    /// Id of the sandbox, which is that of its first container.
    pub id: Id,
    /// Its directory, which exists and is empty.
    pub directory: PathBuf,
    /// The state root: each container has its directory there (see
    /// [`crate::layout`]), made by who creates it.
    pub root: PathBuf,
    /// Network namespace that has the sandbox's interfaces. The VMM lives in one
    /// of its own, which has none: it is given the descriptors of taps.
    pub netns: Option<PathBuf>,
    /// Host name of the guest itself.
    pub hostname: String,
    /// Cgroup of the sandbox's processes on the host, as `linux.cgroupsPath` of
    /// its first container names it.
    pub cgroup: Option<String>,
    /// The resolved configuration.
    pub config: Config,
    /// Who asks, and what follows from that.
    pub client: Client,
    /// It is a pod by containerd's Sandbox API. What its members find in /etc
    /// is here then, and who of them asks for a new network gets the pod's.
    pub pod: Option<PodFiles>,
}

/// Far more than a client takes that reads at all.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// Who a sandbox's client is.
#[derive(Debug, Clone)]
pub enum Client {
    /// The OCI command line. It says no farewell: the sandbox ends when its last
    /// container has been deleted, and an exec is forgotten when it has ended.
    CommandLine,
    /// containerd, which hears the news, deletes what it has made, and asks for
    /// the end of the sandbox.
    Containerd(Listener),
}

/// Who hears the news of a sandbox. It must not take its time.
#[derive(Clone)]
pub struct Listener(Arc<dyn Fn(News) + Send + Sync>);

impl Listener {
    /// Calls `hear` with each.
    pub fn new(hear: impl Fn(News) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

impl Client {
    pub(crate) fn tell(&self, news: News) {
        if let Self::Containerd(Listener(hear)) = self {
            hear(news);
        }
    }

    /// How long the end of a process waits for the end of its output. Who reads
    /// after the command line sees the end of the process only. A client of
    /// containerd sees both, and may have gone without anybody in its place.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match self {
            Self::CommandLine => None,
            Self::Containerd(_) => Some(OUTPUT_PATIENCE),
        }
    }
}

/// Why a sandbox did not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or socket of the sandbox's directory.
    #[error("{what} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The share.
    #[error(transparent)]
    Share(#[from] share::Error),
    /// The network namespace.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// The device process.
    #[error(transparent)]
    Devices(#[from] device_process::Error),
    /// The VMM.
    #[error(transparent)]
    Hypervisor(#[from] casemate_hypervisor::Error),
    /// A word of `guest.kernel_parameters`.
    #[error(transparent)]
    Parameter(#[from] casemate_hypervisor::BadParameter),
    /// The agent's answer to the greeting or the preparation.
    #[error("the guest did not come up: {0}")]
    Agent(#[from] agent::Error),
    /// The VMM ended before the agent answered.
    #[error("the virtual machine ended while it started: {0}")]
    Ended(String),
    /// The cgroup of the sandbox.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// Nobody called.
    #[error(
        "the agent did not call within {0:?} (vmm.boot_timeout_s); \
         is guest.initrd the one of this build?"
    )]
    Silent(Duration),
}

/// A sandbox without a machine.
#[derive(Debug)]
pub struct Prepared {
    options: Options,
    ledger: Ledger,
    share: Share,
    control: UnixListener,
    hybrid: StdListener,
    sockets: PathBuf,
}

/// A sandbox whose machine runs.
pub struct Booted {
    prepared: Prepared,
    vm: Arc<dyn Vm>,
    devices: DeviceProcess,
    namespace: Option<(Namespace, Claim)>,
}

/// A sandbox whose agent answers.
pub struct Ready {
    /// What there is to undo.
    pub ledger: Ledger,
    /// Files for the guest.
    pub share: Rc<Share>,
    /// The machine.
    pub vm: Arc<dyn Vm>,
    /// The jailed device process.
    pub devices: Rc<DeviceProcess>,
    /// The agent.
    pub agent: Agent,
    /// Path of the hybrid socket, for streams.
    pub hybrid: PathBuf,
    /// The way to the task that keeps the network.
    pub(crate) network: network::Handle,
    /// The sandbox's right to the network namespace.
    _claim: Option<Claim>,
}

impl Prepared {
    /// Takes possession of the sandbox's directory.
    ///
    /// # Errors
    /// A full disk, missing rights.
    pub fn new(options: Options) -> Result<Self, Error> {
        let directory = options.directory.clone();
        let ledger = Ledger::create(&directory)?;
        let share = Share::open(&directory)?;
        let sockets = directory.join(VSOCK_DIRECTORY);
        fs::create_dir(&sockets).map_err(at("make directory", &sockets))?;
        let hybrid = listen(&sockets.join(HYBRID_SOCKET))?;
        let path = host_port(&sockets, HOST_CONTROL_PORT);
        let control = listen(&path)?;
        let failed = at("listen on", &path);
        control
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(control))
            .map_err(failed)
            .map(|control| Self {
                options,
                ledger,
                share,
                control,
                hybrid,
                sockets,
            })
    }

    /// Starts the device process and the machine.
    ///
    /// # Errors
    /// When one of them does not start.
    pub async fn boot(
        mut self,
        hypervisor: &dyn Hypervisor,
        timeline: &mut Timeline,
    ) -> Result<Booted, Error> {
        let begin = now_ns();
        let netns = self.options.netns.as_deref();
        let namespace = netns.map(Namespace::claim).transpose()?;
        let (fs_back_end, fs_front_end) = self.vhost_user_socket("fs.sock")?;
        let (vsock_back_end, vsock_front_end) = self.vhost_user_socket("vsock.sock")?;
        let devices = DeviceProcess::spawn(device_process::Start {
            share: self.share.path(),
            vsock_directory: &self.sockets,
            fs_listener: fs_back_end.as_fd(),
            vsock_listener: vsock_back_end.as_fd(),
            hybrid_listener: self.hybrid.as_fd(),
            guest_cid: GUEST_CID,
            cache: self.options.config.share.cache,
            log: &self.options.directory.join(device_process::LOG),
        })?;
        self.ledger.record_process("devices", devices.pid())?;
        let group = match &self.options.cgroup {
            Some(path) => Some(Cgroup::make(path, devices.pid(), &mut self.ledger)?),
            None => None,
        };
        timeline.until_now("host", "device process", begin);

        let begin = now_ns();
        let spec = self.boot_spec(fs_front_end, vsock_front_end)?;
        let vm: Arc<dyn Vm> = Arc::from(hypervisor.boot(spec).await?);
        self.ledger.record_process("vmm", vm.pid())?;
        group.iter().try_for_each(|group| group.add(vm.pid()))?;
        timeline.until_now("vmm", "start", begin);
        Ok(Booted {
            prepared: self,
            vm,
            devices,
            namespace,
        })
    }

    fn boot_spec(&self, fs: OwnedFd, vsock: OwnedFd) -> Result<BootSpec, Error> {
        let config = &self.options.config;
        let id = VMM_ID_BASE + std::process::id();
        Ok(BootSpec {
            kernel: config.guest.kernel.clone(),
            initrd: config.guest.initrd.clone(),
            parameters: Parameter::words(&config.guest.kernel_parameters)?,
            vcpus: config.machine.vcpus,
            memory_mib: config.machine.memory_mib,
            hotplug_slots: config.machine.hotplug_slots,
            template: false,
            file_share: Some(FileShare {
                tag: SHARE_TAG.to_owned(),
                socket: fs,
            }),
            vsock: Some(Vsock { socket: vsock }),
            console: ConsoleLog {
                path: self.options.directory.join(CONSOLE_LOG),
                limit_bytes: u64::from(config.vmm.console_log_kib) << 10,
            },
            netns: None,
            identity: Identity { uid: id, gid: id },
        })
    }

    /// A listening socket for a back end and a connection to it for the VMM. The
    /// path is gone again at once: nobody else may come.
    fn vhost_user_socket(&self, name: &str) -> Result<(OwnedFd, OwnedFd), Error> {
        let path = self.options.directory.join(name);
        let listener = listen(&path)?;
        let connection = socket::connect(&path).map_err(at("connect to", &path))?;
        fs::remove_file(&path).map_err(at("remove", &path))?;
        Ok((listener.into(), connection.into()))
    }
}

impl Booted {
    /// Waits for the agent's call, greets it and prepares the guest.
    ///
    /// # Errors
    /// When the machine ends or nobody calls in time.
    pub async fn greet(self, timeline: &mut Timeline) -> Result<Ready, Error> {
        let begin = now_ns();
        let config = &self.prepared.options.config;
        let limit = Duration::from_secs(config.vmm.boot_timeout_s.into());
        let connection = tokio::select! {
            accepted = self.prepared.control.accept() => accepted.map_err(at("accept on", &self.prepared.sockets))?.0,
            end = end_of(self.vm.as_ref(), &self.devices) => return Err(Error::Ended(end)),
            () = tokio::time::sleep(limit) => return Err(Error::Silent(limit)),
        };
        timeline.until_now("host", "wait for the agent", begin);
        let begin = now_ns();
        let limit = Duration::from_secs(config.agent.timeout_s.into());
        let (agent, hello) = Agent::greet(Socket::new(connection), limit).await?;
        timeline.relate_guest(hello.now_ns, now_ns());
        timeline.add_guest("agent", &hello.spans);
        tracing::info!(
            kernel = agent::printable(&hello.kernel_release),
            agent = agent::printable(&hello.agent_version),
            "guest is up"
        );
        let prepared = agent.prepare_sandbox(&self.preparation()).await?;
        timeline.add_guest("agent", &prepared.spans);
        timeline.until_now("host", "prepare the guest", begin);
        let (namespace, claim) = self.namespace.unzip();
        let network = network::keep(network::Start {
            namespace,
            directory: &self.prepared.options.directory,
            names_socket: host_port(&self.prepared.sockets, HOST_NAMES_PORT),
            hybrid: self.prepared.sockets.join(HYBRID_SOCKET),
            slots: self.prepared.options.config.machine.hotplug_slots,
            vm: Arc::clone(&self.vm),
            agent: agent.clone(),
        })?;
        let Prepared {
            ledger,
            share,
            sockets,
            ..
        } = self.prepared;
        Ok(Ready {
            ledger,
            share: Rc::new(share),
            vm: self.vm,
            devices: Rc::new(self.devices),
            agent,
            hybrid: sockets.join(HYBRID_SOCKET),
            network,
            _claim: claim,
        })
    }

    fn preparation(&self) -> message::PrepareSandboxRequest {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("every Linux has this clock");
        message::PrepareSandboxRequest {
            sandbox_id: self.prepared.options.id.to_string(),
            hostname: self.prepared.options.hostname.clone(),
            realtime_ns: now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64,
            entropy: entropy(64),
            machine_id: entropy(16)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            vcpus: self.prepared.options.config.machine.vcpus,
            memory_mib: self.prepared.options.config.machine.memory_mib,
            mounts: vec![message::Mount {
                destination: paths::SHARE.to_owned(),
                fstype: "virtiofs".to_owned(),
                source: SHARE_TAG.to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }
}

/// Resolves when one of the machine's processes has ended, with one line that
/// says how. When the VMM ends, the device process sees that and ends as well;
/// whichever is noticed first, the VMM's own end is the news.
pub(crate) async fn end_of(vm: &dyn Vm, devices: &DeviceProcess) -> String {
    tokio::select! {
        biased;
        exit = vm.exited() => exit.to_string(),
        (orderly, line) = devices.ended() => {
            let last = timeout(LAST_WORDS, vm.exited());
            match if orderly { last.await.ok() } else { None } {
                Some(exit) => exit.to_string(),
                None => line,
            }
        }
    }
}

/// Random bytes for the guest: it has just been born and knows nothing.
fn entropy(count: usize) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; count];
    match File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)) {
        Ok(()) => bytes,
        // The guest has a virtio-rng device as well.
        Err(_) => Vec::new(),
    }
}

/// Where the host is reached at a vsock port of its own.
fn host_port(sockets: &Path, port: u32) -> PathBuf {
    sockets.join(format!("{HYBRID_SOCKET}_{port}"))
}

fn listen(path: &Path) -> Result<StdListener, Error> {
    socket::listen(path).map_err(at("listen on", path))
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}
