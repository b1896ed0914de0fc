//! A process whose end the caller waits for: signals and the size of the
//! terminal are passed on to it meanwhile.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use casemate_linux::reactor;
use casemate_sandbox::stand_in;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    client::Monitor,
    launch::{Ending, Launched, OwnTerminal},
    log,
};

/// Signals that are passed on to the container.
const FORWARDED: [i32; 7] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
];

/// Waits for the end of a process; the empty exec id is the container's init.
/// One that nobody hears of any more has been lost with its VM.
///
/// # Errors
/// When its end cannot be watched.
pub async fn wait(launched: &Launched, exec: &str) -> Result<u8> {
    let ended = match &launched.ending {
        Ending::StandIn(child) => child.pidfd().try_clone_to_owned(),
        Ending::Told(socket) => socket.as_fd().try_clone_to_owned(),
    };
    let ended = reactor::register_readable(ended.context("stand-in")?).context("stand-in")?;
    let monitor = Monitor::connect(&launched.place)?;
    let (sender, mut signals) = tokio::sync::mpsc::unbounded_channel();
    for number in FORWARDED {
        let stream = signal(SignalKind::from_raw(number)).context("signal handler")?;
        tokio::spawn(pass(stream, number, sender.clone()));
    }
    let resized = signal(SignalKind::window_change()).context("signal handler")?;
    tokio::spawn(pass(resized, libc::SIGWINCH, sender));
    follow_size(launched.terminal.as_ref(), &monitor, exec).await;
    loop {
        tokio::select! {
            _ = ended.readable() => break,
            Some(number) = signals.recv() => match number {
                libc::SIGWINCH => follow_size(launched.terminal.as_ref(), &monitor, exec).await,
                // One that has just ended needs no signal.
                number => drop(monitor.kill(exec, number as u32, false).await),
            },
        }
    }
    let status = match &launched.ending {
        Ending::StandIn(child) => child.wait().context("stand-in")?.shell_status(),
        Ending::Told(socket) => stand_in::told_status(socket),
    };
    Ok(status as u8)
}

async fn pass(mut stream: Signal, number: i32, sender: tokio::sync::mpsc::UnboundedSender<i32>) {
    while stream.recv().await.is_some() {
        if sender.send(number).is_err() {
            return;
        }
    }
}

async fn follow_size(terminal: Option<&OwnTerminal>, monitor: &Monitor, exec: &str) {
    let Some(terminal) = terminal else { return };
    let (columns, rows) = match terminal.size() {
        Ok(size) => size,
        Err(error) => return tracing::warn!("{}", log::one_line(&error)),
    };
    if let Err(error) = monitor.resize(exec, columns.into(), rows.into()).await {
        tracing::debug!("{}", log::one_line(&error));
    }
}
