//! A process whose end the caller waits for: signals and the size of the
//! terminal are passed on to it meanwhile.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use casemate_linux::reactor;
use casemate_sandbox::stand_in;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
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

/// The signals that are for the process, kept until [`wait`] can pass them on.
/// They are held before it starts: with the first word that it says, its user
/// may send it one, which is not to end this process instead.
#[derive(Debug)]
pub struct HeldSignals {
    before: SigSet,
}

impl HeldSignals {
    /// Holds them from now on. Programs started meanwhile hold none.
    ///
    /// # Errors
    /// None known.
    pub fn hold() -> Result<Self> {
        let mut set = SigSet::empty();
        for number in FORWARDED.into_iter().chain([libc::SIGWINCH]) {
            set.add(number.try_into().context("signal")?);
        }
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before)).context("signals")?;
        Ok(Self { before })
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // A mask that was in force is a valid one.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

/// Waits for the end of a process; the empty exec id is the container's init.
/// One that nobody hears of any more has been lost with its VM.
///
/// # Errors
/// When its end cannot be watched.
pub async fn wait(launched: &Launched, exec: &str, held: HeldSignals) -> Result<u8> {
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
    drop(held);
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

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[test]
    fn what_comes_before_the_handlers_waits_for_them() {
        let blocked = || SigSet::thread_get_mask().unwrap();
        let held = HeldSignals::hold().unwrap();
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(blocked().wait().unwrap(), Signal::SIGTERM);
        drop(held);
        assert!(!blocked().contains(Signal::SIGTERM));
    }
}
