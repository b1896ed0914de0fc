//! Reaping whatever has ended: the duty of PID 1, who gets children that it
//! never made.

use std::io;

use nix::sys::signal::{SigSet, Signal};

use crate::{check, disposition::reset_actions, process::Exit};

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

/// The life of a process that has nothing to do but to reap until it is told to
/// end.
#[derive(Debug)]
pub struct Vigil(SigSet);

impl Vigil {
    /// From here on no end of a child and no word to end is missed. Signals
    /// besides these have their default action.
    ///
    /// # Errors
    /// None known.
    pub fn begin() -> io::Result<Self> {
        let mut awaited = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            awaited.add(signal);
        }
        awaited.thread_block()?;
        reset_actions();
        Ok(Self(awaited))
    }

    /// Reaps until SIGTERM or SIGINT comes.
    pub fn keep(self) {
        loop {
            while let Ok(Some(_)) = next_ended() {}
            if let Ok(Signal::SIGTERM | Signal::SIGINT) = self.0.wait() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Birth, Namespaces, spawn};

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

    /// As the first process of a PID namespace, whom other signals do not harm.
    #[test]
    fn a_vigil_reaps_and_ends_when_told() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a PID namespace needs root");
            return;
        }
        let (ready, mut told) = io::pipe().unwrap();
        let birth = Birth {
            namespaces: Some(Namespaces::CLONE_NEWPID),
            ..Birth::default()
        };
        let first = spawn(birth, || {
            let vigil = Vigil::begin().unwrap();
            spawn(Birth::default(), || 0).unwrap();
            io::Write::write_all(&mut told, b"x").unwrap();
            vigil.keep();
            0
        })
        .unwrap();
        io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", first.pid());
        while !std::fs::read_to_string(&children).unwrap().is_empty() {
            std::thread::yield_now();
        }
        for harmless in [libc::SIGHUP, libc::SIGUSR1, libc::SIGRTMIN() + 3] {
            first.signal(harmless).unwrap();
        }
        assert_eq!(first.try_wait().unwrap(), None);
        first.signal(libc::SIGINT).unwrap();
        assert_eq!(first.wait().unwrap(), Exit::Code(0));
    }

    #[test]
    fn being_told_before_the_vigil_is_kept_counts() {
        let told = spawn(Birth::default(), || {
            let vigil = Vigil::begin().unwrap();
            nix::sys::signal::raise(Signal::SIGTERM).unwrap();
            vigil.keep();
            0
        });
        assert_eq!(told.unwrap().wait().unwrap(), Exit::Code(0));
    }
}
