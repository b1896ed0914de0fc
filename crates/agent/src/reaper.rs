//! PID 1's duty: every process that ends is reaped here and nowhere else, ours
//! and the orphans that the kernel hands to us.
//!
//! One task owns the loop. A process is registered right after it was made,
//! before anything else runs on the only thread, so that its end cannot be
//! missed.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use casemate_linux::{process::Exit, reactor::register, reaping::next_ended};
use nix::{
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::read,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

use crate::{console::say, timeline};

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    /// CLOCK_REALTIME, nanoseconds.
    pub(crate) at_ns: u64,
}

/// The end of one process, for any number of waiters and at any time.
#[derive(Debug, Clone)]
pub(crate) struct End(watch::Receiver<Option<Ended>>);

impl End {
    /// Waits for it.
    pub(crate) async fn reached(&mut self) -> Ended {
        match self.0.wait_for(Option::is_some).await {
            Ok(ended) => ended.expect("waited for it"),
            // The reaper keeps every sender until it has sent.
            Err(_) => unreachable!("the reaper forgot a process"),
        }
    }

    /// What is known now.
    pub(crate) fn known(&self) -> Option<Ended> {
        *self.0.borrow()
    }
}

/// Processes whose end somebody wants to hear of, by id. The lock is never
/// contended (one thread) and never held across an await; it is there because
/// the ttrpc server asks for types that could be shared between threads.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    awaited: Mutex<HashMap<u32, watch::Sender<Option<Ended>>>>,
}

impl Reaper {
    /// Begins to reap.
    ///
    /// # Errors
    /// When the signal cannot be caught.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let child_ended = child_signals()?;
        let owner = Arc::clone(&reaper);
        tokio::spawn(async move {
            let mut signals = [0; 512];
            loop {
                let read = |file: &OwnedFd| Ok(read(file, &mut signals)?);
                if let Err(error) = child_ended.async_io(Interest::READABLE, read).await {
                    return say(format_args!("reap: {error}"));
                }
                owner.reap_all();
            }
        });
        Ok(reaper)
    }

    /// Asks to hear of the end of a process that has just been made.
    pub(crate) fn watch(&self, pid: u32) -> End {
        let (sender, receiver) = watch::channel(None);
        self.lock().insert(pid, sender);
        End(receiver)
    }

    fn reap_all(&self) {
        while let Ok(Some((pid, exit))) = next_ended() {
            self.ended(pid, exit);
        }
    }

    fn ended(&self, pid: u32, exit: Exit) {
        if let Some(sender) = self.lock().remove(&pid) {
            sender.send_replace(Some(Ended {
                exit,
                at_ns: timeline::realtime(),
            }));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, watch::Sender<Option<Ended>>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// SIGCHLD as a descriptor: a handler would interrupt whatever the thread does,
/// and take three times as much code to arrive at the same place.
fn child_signals() -> io::Result<AsyncFd<OwnedFd>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let descriptor = SignalFd::with_flags(&signals, flags)?;
    register(descriptor.as_fd().try_clone_to_owned()?, Interest::READABLE)
}
