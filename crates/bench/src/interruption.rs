//! A user who does not want to wait for the end: what was started is taken down all the
//! same, since the measurement then ends as by an error.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Set once by a thread that does nothing but wait for signals, and read by the one that
/// measures: there is no other state to agree with it.
static WANTED: AtomicBool = AtomicBool::new(false);

/// How soon a wait takes notice.
const NOTICE: Duration = Duration::from_millis(100);

/// Makes SIGINT, SIGTERM and SIGHUP interrupt the measurement. Programs that are started have
/// the default actions again.
pub(crate) fn listen() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("signals")?;
    let streams = runtime.block_on(async { streams() }).context("signals")?;
    thread::spawn(move || runtime.block_on(any(streams)));
    Ok(())
}

fn streams() -> io::Result<[Signal; 3]> {
    Ok([
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ])
}

async fn any([mut interrupt, mut terminate, mut hangup]: [Signal; 3]) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    WANTED.store(true, Ordering::Relaxed);
}

/// Asked between the steps of a measurement.
///
/// # Errors
/// When the user wants no more of them.
pub(crate) fn check() -> Result<()> {
    ensure!(!WANTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Leaves alone what runs.
///
/// # Errors
/// When the user does not want to wait.
pub(crate) fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(NOTICE));
    }
}
