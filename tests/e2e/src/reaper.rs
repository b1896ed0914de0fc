//! The only place of a scenario's process that waits for children.
//!
//! The process is a subreaper, as conmon and containerd's shim are: whatever
//! its commands leave behind becomes its child. One thread takes every exit
//! status; a status is asked for by process id, also after the process ended.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};

use crate::command::Exit;

#[derive(Default)]
struct Reaper {
    ended: Mutex<HashMap<i32, (Instant, Exit)>>,
    changed: Condvar,
}

static REAPER: OnceLock<&'static Reaper> = OnceLock::new();

/// Starts the thread. From here on nobody else may wait for a child.
pub(crate) fn start() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("become the subreaper")?;
    let reaper: &'static Reaper = Box::leak(Box::default());
    if REAPER.set(reaper).is_ok() {
        thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(|| reaper.run())?;
    }
    Ok(())
}

/// The exit of child `pid`, which was started at `since` or later; none if it
/// still runs after `limit`.
pub(crate) fn exit_of(pid: i32, since: Instant, limit: Duration) -> Option<Exit> {
    REAPER
        .get()
        .and_then(|reaper| reaper.wait(pid, since, limit))
}

impl Reaper {
    fn run(&self) {
        loop {
            let (pid, exit) = match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as i32)),
                Err(Errno::ECHILD) => {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                }
                _ => continue,
            };
            self.lock().insert(pid.as_raw(), (Instant::now(), exit));
            self.changed.notify_all();
        }
    }

    fn wait(&self, pid: i32, since: Instant, limit: Duration) -> Option<Exit> {
        let deadline = Instant::now() + limit;
        let mut ended = self.lock();
        loop {
            // An older entry belongs to an earlier process with the same id.
            if let Some(&(at, exit)) = ended.get(&pid)
                && at >= since
            {
                return Some(exit);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            ended = self
                .changed
                .wait_timeout(ended, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, (Instant, Exit)>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
