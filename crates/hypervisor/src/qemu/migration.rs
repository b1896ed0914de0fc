//! What saving and restoring have in common: to QEMU both are a migration, to or
//! from a connection that carries no memory.

use std::{
    os::{fd::AsFd, unix::net::UnixStream as StdStream},
    time::Duration,
};

use tokio::{net::UnixStream, sync::broadcast, time::timeout};

use super::{
    commands::{Capability, GetFd, MigrateSetCapabilities},
    machine::Machine,
    process::spawning,
    qmp::{Command, Event, Failure},
};
use crate::Error;

/// The name of QEMU's end of the connection.
pub(super) const STATE: &str = "state";

/// How long it may take: some hundred kilobytes, of which the guest decides
/// nothing.
const LIMIT: Duration = Duration::from_secs(30);

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    Failed,
}

impl Machine {
    /// Makes ready for a migration and gives QEMU one end of the connection that
    /// carries the state, under the name [`STATE`]; the other end is the answer.
    pub(super) async fn lend_stream(&self) -> Result<UnixStream, Error> {
        let made = StdStream::pair().and_then(|(ours, its)| {
            ours.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, its))
        });
        let (ours, its) = made.map_err(spawning("making a socket"))?;
        self.allow_migration().await?;
        let lend = GetFd { fdname: STATE };
        self.execute_with(&lend, its.as_fd()).await?;
        Ok(ours)
    }

    /// Leaves out shared memory that has a name, and tells what happens by events.
    async fn allow_migration(&self) -> Result<(), Error> {
        let capabilities = ["x-ignore-shared", "events"].map(Capability::on);
        let set = MigrateSetCapabilities {
            capabilities: &capabilities,
        };
        self.execute(&set).await.map(drop)
    }

    /// Waits until it has ended.
    pub(super) async fn migrated(
        &self,
        events: &mut broadcast::Receiver<Event>,
    ) -> Result<End, Error> {
        let command = MigrateSetCapabilities::NAME;
        let ended = async {
            loop {
                match events.recv().await {
                    Ok(Event::Migration { status }) => match status.as_str() {
                        "completed" => return Ok(End::Completed),
                        "failed" | "cancelled" => return Ok(End::Failed),
                        _ => {}
                    },
                    Err(broadcast::error::RecvError::Closed) => return Err(Failure::Closed),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                }
            }
        };
        match timeout(LIMIT, ended).await {
            Ok(Ok(end)) => Ok(end),
            Ok(Err(failure)) => Err(self.error(command, failure).await),
            Err(_) => Err(Error::Deadline {
                command: "migrate",
                after: LIMIT,
            }),
        }
    }
}
