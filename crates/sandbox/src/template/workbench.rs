//! What machines in the making need besides their template's files: the one that is
//! saved, and after it the clone that is tried.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use casemate_config::Config;
use casemate_hypervisor::{BootSpec, DeviceId, Hypervisor, TemplateFiles};
use casemate_protocol::agent as message;

use super::making::Error;
use crate::{
    agent::Agent,
    device_process::DeviceProcess,
    machine::{self, BackEnds, Devices, Sockets, boot_spec, called, cause, end_of, guest_cid},
    settings::size_of,
    share::Share,
};

/// An empty share, and sockets.
pub(super) struct Workbench<'a> {
    config: &'a Config,
    directory: &'a Path,
    share: Share,
    sockets: Sockets,
}

impl<'a> Workbench<'a> {
    /// Sets it up in `directory`.
    ///
    /// # Errors
    /// A full disk, missing rights.
    pub(super) fn set_up(config: &'a Config, directory: &'a Path) -> Result<Self, machine::Error> {
        Ok(Self {
            config,
            directory,
            share: Share::open(directory)?,
            sockets: Sockets::make(directory)?,
        })
    }

    /// Makes it ready for the next machine.
    ///
    /// # Errors
    /// As [`Workbench::set_up`].
    pub(super) fn clear(&mut self) -> Result<(), machine::Error> {
        self.sockets.hang_up()
    }

    /// Boots a machine and writes it into the files.
    ///
    /// # Errors
    /// When it does not come up or cannot be saved.
    pub(super) async fn save(
        &mut self,
        hypervisor: &dyn Hypervisor,
        into: &TemplateFiles,
    ) -> Result<(), Error> {
        // It boots without files, whose back end waits for the end of this one.
        let (back_ends, _files, vsock) = self.sockets.back_ends()?;
        let devices = self.serve(&back_ends)?;
        let spec = BootSpec {
            vsock: Some(vsock),
            ..self.spec()?
        };
        let vm = match hypervisor.boot(spec).await {
            Ok(vm) => vm,
            Err(error) => return Err(cause(error, &devices).await.into()),
        };
        tokio::select! {
            biased;
            end = end_of(vm.as_ref(), &devices) => return Err(machine::Error::Ended(end).into()),
            ready = self.make_ready() => ready?,
        }
        vm.unplug(&DeviceId::VSOCK).await?;
        vm.snapshot(into).await?;
        Ok(self.clear()?)
    }

    /// Tells the agent that it will be saved. It waits for the end of this connection
    /// before it lets the device go.
    async fn make_ready(&self) -> Result<(), Error> {
        let agent = self.greet(false).await?;
        agent.become_template(&message::Empty::default()).await?;
        Ok(())
    }

    /// Restores a machine with all that a sandbox's has, and ends it when its agent has
    /// answered; how long it took until then.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) async fn try_clone(
        &self,
        hypervisor: &dyn Hypervisor,
        from: TemplateFiles,
    ) -> Result<Duration, machine::Error> {
        let begin = Instant::now();
        let (back_ends, file_share, vsock) = self.sockets.back_ends()?;
        let devices = self.serve(&back_ends)?;
        let spec = BootSpec {
            file_share: Some(file_share),
            vsock: Some(vsock),
            ..self.spec()?
        };
        let vm = match hypervisor.restore(from, spec).await {
            Ok(vm) => vm,
            Err(error) => return Err(cause(error, &devices).await),
        };
        tokio::select! {
            biased;
            end = end_of(vm.as_ref(), &devices) => return Err(machine::Error::Ended(end)),
            greeted = self.greet(true) => greeted?,
        };
        Ok(begin.elapsed())
    }

    async fn greet(&self, cloned: bool) -> Result<Agent, machine::Error> {
        let connection = called(self.config, &self.sockets, cloned).await?;
        let limit = Duration::from_secs(self.config.agent.timeout_s.into());
        Ok(Agent::greet(connection, limit).await?.0)
    }

    fn spec(&self) -> Result<BootSpec, machine::Error> {
        let size = size_of(&self.config.machine);
        Ok(boot_spec(self.config, size, true, self.directory)?)
    }

    fn serve(&self, back_ends: &BackEnds) -> Result<DeviceProcess, machine::Error> {
        let served = self.sockets.serve(
            back_ends,
            &Devices {
                share: self.share.path(),
                guest_cid: guest_cid(),
                cache: self.config.share.cache,
            },
        );
        Ok(served?)
    }
}
