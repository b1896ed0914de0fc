//! A hypervisor without guests, for tests of what is built on one: its machines
//! are idle processes, and it fails where a test wants it to.
//!
//! Every call that can fail is a step, counted over all machines; starting one
//! is two, before and after its process is made. A test runs with
//! [`Fake::failing_at`] 1, 2, 3 … until [`Fake::steps`] shows that the step was
//! not reached.

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
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

use crate::{
    BootSpec, Capabilities, Cause, Device, DeviceId, Error, Exit, Hypervisor, Metrics, Thread,
    ThreadRole, Vm,
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

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Vm>, Error> {
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
        let machine = FakeMachine {
            guest: Arc::clone(&guest),
            exit,
            steps: Arc::clone(&self.steps),
            plugged: Mutex::new(vec![None; spec.hotplug_slots as usize]),
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

struct FakeMachine {
    guest: Arc<Guest>,
    exit: watch::Receiver<Option<Exit>>,
    steps: Arc<Steps>,
    /// Serial numbers of the devices, by slot.
    plugged: Mutex<Vec<Option<u64>>>,
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.kill();
    }
}

#[async_trait]
impl Vm for FakeMachine {
    fn pid(&self) -> u32 {
        self.guest.pid
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let exit = exit.wait_for(Option::is_some).await;
        exit.expect("its task lives")
            .clone()
            .expect("it was waited for")
    }

    async fn plug(&self, _device: Device) -> Result<DeviceId, Error> {
        self.steps.take()?;
        let serial = self.steps.taken.load(Ordering::Relaxed).into();
        let mut plugged = self.plugged.lock().expect("no test panicked here");
        let slots = plugged.len() as u32;
        let free = plugged.iter().position(Option::is_none);
        let slot = free.ok_or(Error::NoFreeSlot { slots })?;
        plugged[slot] = Some(serial);
        let slot = slot as u32;
        Ok(DeviceId { slot, serial })
    }

    async fn unplug(&self, id: &DeviceId) -> Result<(), Error> {
        self.steps.take()?;
        let mut plugged = self.plugged.lock().expect("no test panicked here");
        match plugged.get_mut(id.slot as usize) {
            Some(slot) if *slot == Some(id.serial) => {
                *slot = None;
                Ok(())
            }
            _ => Err(Error::NoDevice { id: id.to_string() }),
        }
    }

    async fn pause(&self) -> Result<(), Error> {
        self.steps.take()
    }

    async fn resume(&self) -> Result<(), Error> {
        self.steps.take()
    }

    fn threads(&self) -> Result<Vec<Thread>, Error> {
        self.steps.take()?;
        Ok(vec![Thread {
            tid: self.guest.pid,
            role: ThreadRole::Other,
        }])
    }

    fn metrics(&self) -> Result<Metrics, Error> {
        self.steps.take()?;
        Ok(Metrics {
            cpu_time: Duration::ZERO,
            pss_bytes: 0,
        })
    }

    fn kill(&self) {
        self.guest.end(Cause::Killed);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{ConsoleLog, Identity};

    fn spec(directory: &Path) -> BootSpec {
        BootSpec {
            kernel: "kernel".into(),
            initrd: "initrd".into(),
            parameters: Vec::new(),
            vcpus: 1,
            memory_mib: 64,
            hotplug_slots: 1,
            file_share: None,
            vsock: None,
            console: ConsoleLog {
                path: directory.join("console.log"),
                limit_bytes: 4096,
            },
            netns: None,
            identity: Identity { uid: 1, gid: 1 },
        }
    }

    /// Uses every step once.
    async fn use_machine(fake: &Fake, directory: &Path) -> Result<(), Error> {
        let vm = fake.boot(spec(directory)).await?;
        vm.pause().await?;
        vm.resume().await?;
        vm.threads()?;
        vm.metrics()?;
        vm.kill();
        assert_eq!(vm.exited().await.cause, Cause::Killed);
        Ok(())
    }

    #[tokio::test]
    async fn every_step_fails_once() {
        let directory = tempfile::tempdir().unwrap();
        let sound = Fake::new();
        use_machine(&sound, directory.path()).await.unwrap();
        assert_eq!(sound.steps(), 6);
        for step in 1..=sound.steps() {
            let fake = Fake::failing_at(step);
            let error = use_machine(&fake, directory.path()).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("injected failure at step {step}")
            );
        }
    }

    #[tokio::test]
    async fn a_guest_can_end_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        let fake = Fake::new();
        let vm = fake.boot(spec(directory.path())).await.unwrap();
        let process = format!("/proc/{}", vm.pid());
        assert!(Path::new(&process).exists());
        fake.end_guests(&Cause::PowerOff);
        vm.kill();
        assert_eq!(vm.exited().await.cause, Cause::PowerOff);
        assert!(!Path::new(&process).exists());
    }
}
