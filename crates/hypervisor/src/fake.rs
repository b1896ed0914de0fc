//! A hypervisor without guests, for tests of what is built on one: its machines
//! are idle processes, and it fails where a test wants it to.
//!
//! Every call that can fail is a step, counted over all machines; starting one
//! is two, before and after its process is made. A test runs with
//! [`Fake::failing_at`] 1, 2, 3 … until [`Fake::steps`] shows that the step was
//! not reached.

mod machine;

use std::{
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use casemate_config::Tier;
use casemate_linux::{
    descriptor::close_from,
    process::{Birth, Child, die_with_parent, signal_pidfd, spawn},
    reactor::register_readable,
};
use nix::libc::SIGKILL;
use tokio::sync::watch;

use self::machine::FakeMachine;
use crate::{
    BootSpec, Capabilities, Cause, Device, DeviceId, Error, Exit, Hypervisor, Size, TemplateFiles,
    Vm,
};

/// A hypervisor for tests.
#[derive(Debug)]
pub struct Fake {
    capabilities: Capabilities,
    steps: Arc<Steps>,
    guests: Mutex<Vec<Arc<Guest>>>,
}

impl Fake {
    /// One that does not fail.
    pub fn new() -> Self {
        Self::failing_at(0)
    }

    /// One that fails at this step, counted from 1, and at no other.
    pub fn failing_at(step: u32) -> Self {
        Self {
            capabilities: Capabilities {
                program: "fake".to_owned(),
                tier: Tier::Emulated,
                max_vcpus: 8,
                max_hotplug_slots: 8,
                grown: Size {
                    vcpus: 8,
                    memory_mib: 8192,
                },
            },
            steps: Arc::new(Steps {
                taken: AtomicU32::new(0),
                failing: step,
            }),
            guests: Mutex::default(),
        }
    }

    /// How many steps there were so far.
    pub fn steps(&self) -> u32 {
        self.steps.taken.load(Ordering::Relaxed)
    }

    /// Ends every running machine as if its guest had done it.
    pub fn end_guests(&self, cause: &Cause) {
        for guest in &*self.guests.lock().expect("no test panicked here") {
            guest.end(cause.clone());
        }
    }
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct Steps {
    taken: AtomicU32,
    failing: u32,
}

impl Steps {
    fn take(&self) -> Result<(), Error> {
        let step = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        match step == self.failing {
            true => Err(Error::Injected { step }),
            false => Ok(()),
        }
    }
}

/// The process that stands for a machine.
#[derive(Debug)]
struct Guest {
    pid: u32,
    pidfd: OwnedFd,
    cause: Mutex<Option<Cause>>,
}

impl Guest {
    /// The first reason counts.
    fn end(&self, cause: Cause) {
        let mut known = self.cause.lock().expect("no test panicked here");
        known.get_or_insert(cause);
        // It may have ended already.
        let _ = signal_pidfd(std::os::fd::AsFd::as_fd(&self.pidfd), SIGKILL);
    }
}

#[async_trait]
impl Hypervisor for Fake {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn recipe(&self, spec: &BootSpec) -> Result<String, Error> {
        self.steps.take()?;
        let BootSpec {
            vcpus,
            memory_mib,
            hotplug_slots,
            ..
        } = spec;
        Ok(format!("fake\n{vcpus} {memory_mib} {hotplug_slots}\n"))
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Vm>, Error> {
        spec.check_boot()?;
        self.start(spec)
    }

    async fn restore(&self, template: TemplateFiles, spec: BootSpec) -> Result<Box<dyn Vm>, Error> {
        self.steps.take()?;
        if let Some(size) = spec.grown {
            let (vcpus, memory_mib) = (spec.vcpus, spec.memory_mib);
            size.check(Size { vcpus, memory_mib }, self.capabilities.grown)?;
        }
        let TemplateFiles { mut state, memory } = template;
        let mut words = String::new();
        let read = state.read_to_string(&mut words);
        read.map_err(|error| broken(format!("state: {error}")))?;
        if words != STATE {
            return Err(broken("state: not written by this program".to_owned()));
        }
        let wanted = u64::from(spec.memory_mib) << 20;
        match memory.metadata() {
            Ok(file) if file.len() == wanted => self.start(spec),
            _ => Err(broken("memory: not as large as the machine's".to_owned())),
        }
    }
}

/// What the machines write as their state.
const STATE: &str = "a fake machine";

fn broken(problem: String) -> Error {
    Error::Template { problem }
}

impl Fake {
    fn start(&self, mut spec: BootSpec) -> Result<Box<dyn Vm>, Error> {
        self.steps.take()?;
        let failed = |source| Error::Spawn {
            step: "making a process".to_owned(),
            source,
        };
        File::create(&spec.console.path).map_err(failed)?;
        let parent = std::process::id();
        let child = spawn(Birth::default(), || {
            let _ = close_from(3).and_then(|()| die_with_parent(parent));
            loop {
                nix::unistd::pause();
            }
        })
        .map_err(failed)?;
        let guest = Arc::new(Guest {
            pid: child.pid(),
            pidfd: child.pidfd().try_clone_to_owned().map_err(failed)?,
            cause: Mutex::default(),
        });
        let (ended, exit) = watch::channel(None);
        // A machine for templates has them in slots that can be emptied.
        let mut plugged = Vec::new();
        if spec.template {
            let files = spec.file_share.take().map(Device::FileShare);
            let vsock = spec.vsock.take().map(Device::Vsock);
            plugged.extend(files.map(|device| (DeviceId::FILE_SHARE, device)));
            plugged.extend(vsock.map(|device| (DeviceId::VSOCK, device)));
        }
        let machine = FakeMachine {
            guest: Arc::clone(&guest),
            exit,
            steps: Arc::clone(&self.steps),
            slots: spec.hotplug_slots,
            template: spec.template,
            plugged: Mutex::new(plugged),
            memory_mib: spec.memory_mib,
        };
        tokio::spawn(run(child, Arc::clone(&guest), spec, ended));
        self.steps.take()?;
        self.guests
            .lock()
            .expect("no test panicked here")
            .push(guest);
        Ok(Box::new(machine))
    }
}

/// Holds what a machine holds until its process has ended.
async fn run(child: Child, guest: Arc<Guest>, held: BootSpec, ended: watch::Sender<Option<Exit>>) {
    let pidfd = child
        .pidfd()
        .try_clone_to_owned()
        .and_then(register_readable);
    let pidfd = pidfd.expect("a pidfd can be watched");
    let status = loop {
        pidfd
            .readable()
            .await
            .expect("the runtime lives")
            .clear_ready();
        if let Some(status) = child.try_wait().expect("nobody else reaps") {
            break status;
        }
    };
    drop(held);
    let cause = guest.cause.lock().expect("no test panicked here").clone();
    let cause = cause.unwrap_or(Cause::Program(None));
    ended.send_replace(Some(Exit { cause, status }));
}

#[cfg(test)]
mod tests;
