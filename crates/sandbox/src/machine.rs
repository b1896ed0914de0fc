//! From nothing to a VM whose agent answers, in phases that are consumed:
//!
//! ```text
//! Prepared ──boot──► Booted ──settle──► Ready
//!  ledger, share,     device process,    the network's
//!  sockets            VMM running,       task runs
//!                     guest prepared
//! ```
//!
//! An error in a phase drops what it held, which ends the processes; the rest
//! is in the ledger. A machine begins as a clone of a [template](crate::template)
//! where one fits; when that fails, it boots.

mod guest;
mod identity;
mod sockets;
mod spec;
mod start;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use casemate_config::Config;
use casemate_hypervisor::{Error as VmError, Exit as VmExit, Vm};
use casemate_linux::process::Exit;
use nix::libc;
use tokio::time::timeout;

use crate::{
    agent::{self, Agent},
    cgroup,
    device_process::{self, DeviceProcess},
    handle::News,
    identifier::Id,
    ledger::{self, Ledger},
    network::{self, Claim},
    pod_files::PodFiles,
    share::{self, Share},
    template::Templates,
    turn::Turn,
};
pub(crate) use guest::called;
pub use identity::Unconfirmed;
pub(crate) use sockets::{BackEnds, Devices, Sockets};
pub use spec::CONSOLE_LOG;
pub(crate) use spec::{boot_spec, guest_cid};
pub use start::{Booted, Prepared};

/// How long a VMM that has hung up may take to end.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
    /// How templates are used, as far as the configuration allows it.
    pub templates: Option<Templates>,
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

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// The guest could be the same as another one.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
    /// The VMM ended before the agent answered.
    #[error("the virtual machine ended while it started: {0}")]
    Ended(End),
    /// The cgroup of the sandbox.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// Nobody called.
    #[error(
        "the agent did not call within {0:?} (vmm.boot_timeout_s); \
         is guest.initrd the one of this build?"
    )]
    Silent(Duration),
    /// Nor did anybody in a clone.
    #[error(
        "the agent of the clone did not call within {0:?}: clones have {limit:?}, or \
         vmm.boot_timeout_s where that is less", limit = guest::CLONE_LIMIT
    )]
    SilentClone(Duration),
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
    /// Its turn to start, until its first container is made.
    pub(crate) turn: Option<Turn>,
    /// The sandbox's right to the network namespace.
    _claim: Option<Claim>,
}

/// The end of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// How it came, in one line.
    pub line: String,
    /// Somebody has killed one of its processes.
    pub killed: bool,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl From<VmExit> for End {
    fn from(exit: VmExit) -> Self {
        Self {
            line: exit.to_string(),
            killed: exit.status == Exit::Signal(libc::SIGKILL),
        }
    }
}

impl End {
    /// That of the device process, as it tells it.
    fn of_devices((exit, line): (Option<Exit>, String)) -> Self {
        Self {
            line,
            killed: exit == Some(Exit::Signal(libc::SIGKILL)),
        }
    }
}

/// Resolves when one of the machine's processes has ended. When the VMM ends, the
/// device process sees that and ends as well; whichever is noticed first, the
/// VMM's own end is the news.
pub(crate) async fn end_of(vm: &dyn Vm, devices: &DeviceProcess) -> End {
    tokio::select! {
        biased;
        exit = vm.exited() => exit.into(),
        ended = devices.ended() => match ended {
            (Some(Exit::Code(0)), line) => {
                let last = timeout(LAST_WORDS, vm.exited()).await;
                last.map_or(End { line, killed: false }, End::from)
            }
            ended => End::of_devices(ended),
        }
    }
}

/// Why a machine did not start: a VMM whose device process has ended before it
/// only knows that nobody answers.
pub(crate) async fn cause(error: VmError, devices: &DeviceProcess) -> Error {
    if matches!(error, VmError::Ended(_)) {
        match timeout(LAST_WORDS, devices.ended()).await {
            // In order, since the VMM has hung up.
            Err(_) | Ok((Some(Exit::Code(0)), _)) => {}
            Ok(ended) => return Error::Ended(End::of_devices(ended)),
        }
    }
    error.into()
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}
