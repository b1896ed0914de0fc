//! Reaping whatever has ended: the duty of PID 1, who gets children that it
//! never made.

use std::io;

use crate::{check, process::Exit};

/// Reaps one ended child of this process, if there is any: its id and how it
/// ended. Meant for the one place of a process that reaps.
///
/// # Errors
/// ECHILD when there are no children at all.
pub fn next_ended() -> io::Result<Option<(u32, Exit)>> {
    // SAFETY: siginfo_t is plain data; zero is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: info is valid for writing.
    check(i64::from(unsafe {
        libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG)
    }))?;
    // SAFETY: waitid filled the SIGCHLD form of siginfo, or left zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        _ => Exit::Signal(status),
    };
    Ok(Some((pid as u32, exit)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Birth, spawn};

    #[test]
    fn the_ended_are_told_one_by_one() {
        // In a process of its own: the tests beside this one have children too.
        let reaper = spawn(Birth::default(), || {
            let first = spawn(Birth::default(), || 3).unwrap();
            let second = spawn(Birth::default(), || {
                loop {
                    nix::unistd::pause();
                }
            })
            .unwrap();
            let mut ended = Vec::new();
            while ended.is_empty() {
                ended.extend(next_ended().unwrap());
            }
            let told = ended == [(first.pid(), Exit::Code(3))];
            let none = next_ended().unwrap().is_none();
            // No library names this signal.
            second.signal(libc::SIGRTMIN() + 3).unwrap();
            while ended.len() < 2 {
                ended.extend(next_ended().unwrap());
            }
            let signalled = ended[1] == (second.pid(), Exit::Signal(libc::SIGRTMIN() + 3));
            let childless = next_ended().unwrap_err().raw_os_error() == Some(libc::ECHILD);
            i32::from(told && none && signalled && childless)
        })
        .unwrap();
        assert_eq!(reaper.wait().unwrap(), Exit::Code(1));
    }
}
