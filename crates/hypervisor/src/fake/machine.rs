//! A machine without a guest.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Guest, STATE, Steps, broken};
use crate::{
    Cause, Device, DeviceId, Error, Exit, Metrics, Step, TemplateFiles, Thread, ThreadRole, Vm,
    device::Place,
};

pub(super) struct FakeMachine {
    pub(super) guest: Arc<Guest>,
    pub(super) exit: watch::Receiver<Option<Exit>>,
    pub(super) steps: Arc<Steps>,
    pub(super) slots: u32,
    pub(super) template: bool,
    /// What sits where, held as a machine holds it.
    pub(super) plugged: Mutex<Vec<(DeviceId, Device)>>,
    pub(super) memory_mib: u32,
}

impl FakeMachine {
    /// The first free slot that such a device may take.
    fn free(&self, device: &Device, plugged: &[(DeviceId, Device)]) -> Option<DeviceId> {
        let own = match device {
            Device::FileShare(_) if self.template => Some(DeviceId::FILE_SHARE),
            Device::Vsock(_) if self.template => Some(DeviceId::VSOCK),
            _ => None,
        };
        if own.is_some() {
            return own.filter(|id| !plugged.iter().any(|(known, _)| known == id));
        }
        let taken = |wanted: u32| {
            plugged
                .iter()
                .any(|(id, _)| matches!(id.0, Place::Slot { slot, .. } if slot == wanted))
        };
        let slot = (0..self.slots).find(|slot| !taken(*slot))?;
        let serial = self.steps.taken.load(Ordering::Relaxed).into();
        Some(DeviceId(Place::Slot { slot, serial }))
    }
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

    fn steps(&self) -> &[Step] {
        &[]
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let exit = exit.wait_for(Option::is_some).await;
        exit.expect("its task lives")
            .clone()
            .expect("it was waited for")
    }

    async fn plug(&self, device: Device) -> Result<DeviceId, Error> {
        self.steps.take()?;
        let mut plugged = self.plugged.lock().expect("no test panicked here");
        let free = self.free(&device, &plugged);
        let id = free.ok_or(Error::NoFreeSlot { slots: self.slots })?;
        plugged.push((id.clone(), device));
        Ok(id)
    }

    async fn unplug(&self, id: &DeviceId) -> Result<(), Error> {
        self.steps.take()?;
        let mut plugged = self.plugged.lock().expect("no test panicked here");
        let before = plugged.len();
        plugged.retain(|(known, _)| known != id);
        match plugged.len() < before {
            true => Ok(()),
            false => Err(Error::NoDevice { id: id.to_string() }),
        }
    }

    async fn snapshot(&self, into: &TemplateFiles) -> Result<(), Error> {
        self.steps.take()?;
        let plugged = self.plugged.lock().expect("no test panicked here");
        if let Some((id, _)) = plugged.first() {
            return Err(Error::Plugged { id: id.to_string() });
        }
        let written = (&into.state)
            .write_all(STATE.as_bytes())
            .and_then(|()| into.memory.set_len(u64::from(self.memory_mib) << 20));
        written.map_err(|error: io::Error| broken(error.to_string()))?;
        self.steps.take()
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
