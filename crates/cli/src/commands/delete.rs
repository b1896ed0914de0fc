//! `delete`: removes a container and everything its sandbox took on the host,
//! through its monitor or, when that has been killed, by its ledger.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use casemate_sandbox::{
    hooks,
    ledger::Ledger,
    policy::{Operation, allow},
    state::{self, Status},
};
use tokio::time::timeout;

use crate::{
    arguments::{Delete, Global},
    client::{INIT, Monitor, Place, block_on},
    log,
};

/// How long a forced delete waits for the guest before the VM is taken down
/// under it.
const FORCE_LIMIT: Duration = Duration::from_secs(10);

/// How long the monitor may take to end after it has undone everything.
const END_LIMIT: Duration = Duration::from_secs(10);

/// # Errors
/// When it runs and force is not given; what could not be removed.
pub fn run(global: &Global, arguments: &Delete) -> Result<ExitCode> {
    let place = Place::of(global, &arguments.id)?;
    if arguments.force {
        force(&place)?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = place.state()?.status;
    allow(Operation::Delete, status)
        .with_context(|| format!("container {:?}", place.id.as_str()))?;
    remove(&place)?;
    Ok(ExitCode::SUCCESS)
}

/// Removes a container that has ended (or never began).
///
/// # Errors
/// What could not be removed.
pub fn remove(place: &Place) -> Result<()> {
    block_on(async {
        if state::monitor_lives(&place.directory) {
            let monitor = Monitor::connect(place)?;
            monitor.delete().await?;
            monitor.shutdown().await?;
            monitor.await_end(END_LIMIT).await;
        }
        clean_up(place).await
    })
}

/// Removes a container whatever its state: the polite way as far as it works in
/// time.
///
/// # Errors
/// What could not be removed.
pub fn force(place: &Place) -> Result<()> {
    if !place.directory.exists() {
        return Ok(());
    }
    block_on(async {
        if state::monitor_lives(&place.directory)
            && let Ok(monitor) = Monitor::connect(place)
        {
            let polite = timeout(FORCE_LIMIT, end(place, &monitor)).await;
            // One that cannot even do that is killed.
            let _ = timeout(FORCE_LIMIT, monitor.shutdown()).await;
            monitor.await_end(END_LIMIT).await;
            // Two deletes at a time get in each other's way, which is no harm.
            if let Err(error) = polite.context("the guest does not answer").flatten()
                && place.directory.exists()
            {
                tracing::warn!(container = %place.id, "its VM was ended: {}", log::one_line(&error));
            }
        }
        clean_up(place).await
    })
}

async fn end(place: &Place, monitor: &Monitor) -> Result<()> {
    match place.state().map(|state| state.status) {
        Ok(Status::Created | Status::Running) => {
            // It may end by itself meanwhile; what counts is the wait.
            let _ = monitor.kill(INIT, libc::SIGKILL as u32, true).await;
            monitor.wait().await?;
            monitor.delete().await
        }
        Ok(Status::Stopped) => monitor.delete().await,
        // Being created, or nothing yet: the end of the sandbox is enough.
        _ => Ok(()),
    }
}

/// Does by the ledger what a monitor that was killed has not done.
async fn clean_up(place: &Place) -> Result<()> {
    if !place.directory.exists() {
        return Ok(());
    }
    if let Ok(state) = place.state() {
        let hooks = Some(&state.poststop_hooks);
        if let Err(error) = hooks::run("poststop", hooks, &state.to_oci_json(), &state.bundle).await
        {
            tracing::warn!(container = %place.id, "{error}");
        }
    }
    Ledger::undo(&place.directory).with_context(|| format!("container {:?}", place.id.as_str()))
}
