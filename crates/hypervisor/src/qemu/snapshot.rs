//! Machines that are saved.

use std::io::Write;

use tokio::io::AsyncReadExt;

use super::{
    commands::{Migrate, QueryMigrate},
    machine::Machine,
    migration::End,
    qmp::Command,
    restore::broken,
};
use crate::{
    Error, TemplateFiles, Vm,
    memory::{Copying, Zeroes},
};

impl Machine {
    /// Stops the machine and writes state and memory at the same time.
    pub(super) async fn save(&self, into: &TemplateFiles) -> Result<(), Error> {
        if let Some(id) = self.slots().any().await {
            return Err(Error::Plugged { id: id.to_string() });
        }
        let memory = self
            .memory()
            .ok_or_else(|| broken("the machine was not started for one".to_owned()))?;
        let written = |what: &'static str| move |error| broken(format!("{what}: {error}"));
        self.pause().await?;
        let size = memory.metadata().map_err(written("memory"))?.len();
        into.memory.set_len(size).map_err(written("memory"))?;
        let copying = Copying::start(memory, &into.memory, Zeroes::LeftOut, None);
        let copying = copying.map_err(written("memory"))?;
        let state = self.send().await?;
        (&into.state).write_all(&state).map_err(written("state"))?;
        copying.finish().await.map_err(written("memory"))
    }

    /// Takes the state that QEMU writes.
    async fn send(&self) -> Result<Vec<u8>, Error> {
        let mut events = self.qmp().events();
        let mut ours = self.lend_stream().await?;
        self.execute(&Migrate::to_fd()).await?;
        let mut state = Vec::new();
        let (read, ended) = tokio::join!(ours.read_to_end(&mut state), self.migrated(&mut events));
        read.map_err(|error| broken(format!("state: {error}")))?;
        match ended? {
            End::Completed => Ok(state),
            End::Failed => {
                let why = self.execute(&QueryMigrate {}).await?.error_desc;
                let reason = why.unwrap_or_else(|| "it does not say why".to_owned());
                Err(Error::Refused {
                    command: Migrate::NAME,
                    reason,
                })
            }
        }
    }
}
