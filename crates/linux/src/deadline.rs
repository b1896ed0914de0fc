//! Waiting for a child, but not for ever.

use std::{
    io,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::process::{Child, Exit};

/// Waits until the child has ended and reaps it; nothing if it still runs after
/// `limit`.
///
/// # Errors
/// ECHILD when it was reaped elsewhere.
pub fn wait(child: &Child, limit: Duration) -> io::Result<Option<Exit>> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, so that the last round does not spin.
        let left = left.as_millis().saturating_add(1).min(1_000_000) as i32;
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut ended = [PollFd::new(child.pidfd(), PollFlags::POLLIN)];
        match poll(&mut ended, timeout) {
            Ok(0) if Instant::now() < end => {}
            Err(nix::Error::EINTR) => {}
            Ok(0) => return Ok(None),
            Ok(_) => return child.wait().map(Some),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits like [`wait`] and kills the child when its time is up. Nothing even
/// then if it cannot die within a second, as a process stuck in a driver.
///
/// # Errors
/// ECHILD when it was reaped elsewhere.
pub fn wait_or_kill(child: &Child, limit: Duration) -> io::Result<Option<Exit>> {
    if let Some(exit) = wait(child, limit)? {
        return Ok(Some(exit));
    }
    child.signal(libc::SIGKILL)?;
    wait(child, Duration::from_secs(1))?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Birth, spawn};

    #[test]
    fn a_child_in_time_is_reaped_and_a_late_one_killed() {
        let quick = spawn(Birth::default(), || 3).unwrap();
        let exit = wait(&quick, Duration::from_secs(20)).unwrap();
        assert_eq!(exit, Some(Exit::Code(3)));

        let endless = || {
            loop {
                nix::unistd::pause();
            }
        };
        let slow = spawn(Birth::default(), endless).unwrap();
        assert_eq!(wait(&slow, Duration::from_millis(5)).unwrap(), None);
        let exit = wait_or_kill(&slow, Duration::from_millis(5)).unwrap();
        assert_eq!(exit, None);
        assert_eq!(
            slow.try_wait().unwrap_err().raw_os_error(),
            Some(libc::ECHILD)
        );
    }
}
