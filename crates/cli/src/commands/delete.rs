//! `delete`: removes a container and everything it took on the host, with the
//! last one of a sandbox also what that took: through the monitor or, when that
//! has been killed, by the ledgers.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use casemate_sandbox::{
    hooks,
    ledger::Ledger,
    policy::{Operation, allow},
    state::Status,
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

/// Between two looks at a container that is being made.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

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
        if let Some(sandbox) = place.living_sandbox() {
            let monitor = Monitor::connect(place)?;
            monitor.delete().await?;
            monitor.shutdown(false).await?;
            if !sandbox.exists() {
                monitor.await_end(END_LIMIT).await;
            }
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
        if let Some(sandbox) = place.living_sandbox()
            && let Ok(monitor) = Monitor::connect(place)
        {
            let polite = timeout(FORCE_LIMIT, end(place, &monitor)).await;
            let polite = polite.context("the guest does not answer").flatten();
            // One that cannot even do that is killed, with all that is in it.
            let hopeless = polite.is_err() && place.directory.exists();
            if let (Err(error), true) = (polite, hopeless) {
                tracing::warn!(container = %place.id, "its VM is ended: {}", log::one_line(&error));
            }
            let _ = timeout(FORCE_LIMIT, monitor.shutdown(hopeless)).await;
            if hopeless || !sandbox.exists() {
                monitor.await_end(END_LIMIT).await;
            }
        }
        clean_up(place).await
    })
}

async fn end(place: &Place, monitor: &Monitor) -> Result<()> {
    if is_being_made(place) {
        // Alone, it ends with its sandbox; else it will be made soon, or not.
        monitor.shutdown(false).await?;
        while is_being_made(place) {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
    match place.state().map(|state| state.status) {
        Ok(Status::Created | Status::Running | Status::Paused) => {
            // It may end by itself meanwhile; what counts is the wait.
            let _ = monitor.kill(INIT, libc::SIGKILL as u32, true).await;
            monitor.wait().await?;
            monitor.delete().await
        }
        Ok(Status::Stopped) => monitor.delete().await,
        // Nothing yet, or nothing any more.
        _ => Ok(()),
    }
}

fn is_being_made(place: &Place) -> bool {
    place
        .state()
        .is_ok_and(|state| state.status == Status::Creating)
}

/// Does by the ledgers what a monitor that was killed has not done. With it the
/// whole sandbox has ended, whichever of its containers is deleted first.
async fn clean_up(place: &Place) -> Result<()> {
    if !place.directory.exists() {
        return Ok(());
    }
    let mut undone = Ok(());
    if place.living_sandbox().is_none() {
        run_hooks(place).await;
        undone = match place.sandbox() {
            Ok(sandbox) if sandbox.exists() => Ledger::undo(&sandbox),
            _ => Ok(()),
        };
    }
    Ledger::undo(&place.directory)
        .and(undone)
        .with_context(|| format!("container {:?}", place.id.as_str()))
}

async fn run_hooks(place: &Place) {
    let Ok(state) = place.state() else { return };
    let hooks = Some(&state.poststop_hooks);
    let ran = hooks::run("poststop", hooks, &state.to_oci_json(), &state.bundle).await;
    if let Err(error) = ran {
        tracing::warn!(container = %place.id, "{error}");
    }
}
