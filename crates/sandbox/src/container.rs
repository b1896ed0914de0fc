//! The containers of a sandbox as its owner knows them.

use std::{collections::BTreeMap, path::PathBuf, rc::Rc, time::Duration};

use casemate_hypervisor::DeviceId;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

use crate::{
    error::Error,
    identifier::Id,
    key::Key,
    oom::Notice,
    spec::HostSpec,
    stand_in::StandIn,
    state::{State, Status, VERSION},
    stdio::{Input, Stdio},
};

/// Exit status of a process whose VM was lost under it: that of SIGKILL.
pub const LOST: u32 = 137;

/// Where somebody waits for an answer.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// The exit code, or 128 + signal.
    pub code: u32,
    /// When, in nanoseconds of the host's CLOCK_REALTIME.
    pub at_ns: u64,
}

impl ExitStatus {
    /// An end that is noticed now.
    pub fn now(code: u32) -> Self {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("every Linux has this clock");
        Self {
            code,
            at_ns: now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64,
        }
    }
}

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest is making it.
    Creating,
    /// It waits before exec.
    Created,
    /// The guest has been told to let it go.
    Starting,
    /// It runs.
    Running,
    /// It has ended and its output is with the client.
    Stopped(ExitStatus),
}

impl Phase {
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Creating => Status::Creating,
            Self::Created | Self::Starting => Status::Created,
            Self::Running => Status::Running,
            Self::Stopped(_) => Status::Stopped,
        }
    }
}

/// A process of a container.
pub(crate) struct Process {
    pub(crate) phase: Phase,
    /// Process id on the host, for clients: the stand-in's, or for an exec without
    /// one that of the container's.
    pub(crate) pid: u32,
    pub(crate) stand_in: Option<StandIn>,
    /// Who made it deletes it; one of the command line's is forgotten when it
    /// has ended, as the status is its stand-in's.
    pub(crate) kept: bool,
    pub(crate) input: Option<Input>,
    /// An exec that the guest has not been asked for yet: its start does that.
    pub(crate) waiting: Option<Box<WaitingExec>>,
    pub(crate) terminal: bool,
    /// Columns and rows for its terminal when the guest has made it.
    pub(crate) size: Option<(u32, u32)>,
    /// Its stand-in ended while the guest made it.
    pub(crate) orphaned: bool,
    /// It has ended, and who hears the news has not heard that.
    pub(crate) untold: bool,
    pub(crate) waiters: Vec<Reply<ExitStatus>>,
    /// Asked to be removed once it has ended.
    pub(crate) removal: Option<Reply<ExitStatus>>,
}

impl Process {
    pub(crate) fn new(stand_in: Option<StandIn>, terminal: bool) -> Self {
        Self {
            phase: Phase::Creating,
            pid: stand_in.as_ref().map_or(std::process::id(), StandIn::pid),
            kept: true,
            stand_in,
            input: None,
            waiting: None,
            terminal,
            size: None,
            orphaned: false,
            untold: false,
            waiters: Vec::new(),
            removal: None,
        }
    }

    pub(crate) fn stand_in_pid(&self) -> Option<u32> {
        self.stand_in.as_ref().map(StandIn::pid)
    }

    /// The process has ended: everybody who waits learns of it.
    pub(crate) fn end(&mut self, exit: ExitStatus) {
        self.phase = Phase::Stopped(exit);
        self.input = None;
        if let Some(stand_in) = self.stand_in.take() {
            stand_in.dismiss(exit.code);
        }
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Ok(exit));
        }
    }
}

/// A container.
pub(crate) struct Container {
    pub(crate) bundle: PathBuf,
    pub(crate) oci_version: String,
    pub(crate) host: HostSpec,
    /// Its init as the guest was told, for what execs inherit.
    pub(crate) process: casemate_protocol::agent::Process,
    pub(crate) created: String,
    /// When its client was told that it is made, on the timeline's clock.
    pub(crate) told_ns: Option<u64>,
    pub(crate) init: Process,
    pub(crate) execs: BTreeMap<Id, Process>,
    /// All its processes are frozen.
    pub(crate) paused: bool,
    /// What its root file system is on, if the machine has a disk for it.
    pub(crate) disk: Option<DeviceId>,
    /// For when it runs out of memory.
    pub(crate) out_of_memory: Rc<Notice>,
    /// How long the hooks in the guest may take at its start.
    pub(crate) hook_time: Duration,
    /// Execs that were started while it was paused: they run when it goes on.
    pub(crate) held: Vec<(Key, Reply<u32>)>,
}

/// What an exec is made from.
pub(crate) struct WaitingExec {
    pub(crate) process: casemate_protocol::agent::Process,
    pub(crate) stdio: Stdio,
}

impl Container {
    pub(crate) fn process(&mut self, exec: Option<&Id>) -> Option<&mut Process> {
        match exec {
            None => Some(&mut self.init),
            Some(exec) => self.execs.get_mut(exec),
        }
    }

    /// Its init has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.init.phase, Phase::Stopped(_))
    }

    /// Where one of its processes stands, as clients see it.
    pub(crate) fn status(&self, exec: Option<&Id>) -> Option<Status> {
        let process = match exec {
            None => &self.init,
            Some(exec) => self.execs.get(exec)?,
        };
        Some(match process.phase.status() {
            Status::Created | Status::Running if self.paused => Status::Paused,
            status => status,
        })
    }

    /// What the state file says.
    pub(crate) fn state(&self, id: &Id, tier: Option<String>) -> State {
        let phase = self.init.phase;
        State {
            version: VERSION,
            id: id.to_string(),
            oci_version: self.oci_version.clone(),
            status: self.status(None).unwrap_or(Status::Stopped),
            pid: self.init.pid,
            bundle: self.bundle.clone(),
            rootfs: match &self.host.rootfs {
                Some(rootfs) => rootfs.as_path().to_owned(),
                None => PathBuf::new(),
            },
            created: self.created.clone(),
            owner: "root".to_owned(),
            annotations: self.host.annotations.clone(),
            tier,
            poststop_hooks: self.host.hooks.poststop().clone().unwrap_or_default(),
            exit_status: match phase {
                Phase::Stopped(exit) => Some(exit.code),
                _ => None,
            },
        }
    }
}
