//! What signals do to the calling process.

use std::io;

use crate::check;

/// Signals whose default action ends a process and that a client may send to
/// one that has not run its program yet.
const ENDING: [i32; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGPIPE,
];

/// Last signal of the kernel (_NSIG of <asm/signal.h>).
const LAST: i32 = 64;

/// Gives every signal its default action and blocks none. A fork inherits its
/// parent's handlers, exec keeps ignored signals ignored: neither is wanted in
/// a program that someone else wrote.
pub fn reset_all() {
    reset_actions();
    // SAFETY: the set is initialized by sigemptyset before it is read.
    unsafe {
        let mut none = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Gives every signal its default action, whether it is blocked or not.
pub(crate) fn reset_actions() {
    // Struct sigaction as the kernel has it: handler (SIG_DFL is zero), flags,
    // restorer, mask.
    let default = [0_u64; 4];
    for signal in 1..=LAST {
        // By the system call: the C library leaves out signals that it uses.
        // SAFETY: the action is valid for reading, no old one is asked for;
        // SIGKILL and SIGSTOP answer EINVAL.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
}

/// Has the process exit with 128 + signal on the signals that would end any
/// other: the first process of a PID namespace ignores them unless it has a
/// handler (pid_namespaces(7)). Exec takes the handlers away.
///
/// # Errors
/// None known.
pub fn exit_when_told() -> io::Result<()> {
    extern "C" fn exit(signal: libc::c_int) {
        // SAFETY: _exit may be called from a signal handler.
        unsafe { libc::_exit(128 + signal) }
    }
    for signal in ENDING {
        // SAFETY: sigaction is plain data; zero is a valid value of every field.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = exit as extern "C" fn(libc::c_int) as usize;
        // SAFETY: action is valid, its handler only calls _exit.
        check(i64::from(unsafe {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Birth, Exit, Namespaces, spawn};

    #[test]
    fn the_first_process_of_a_namespace_can_be_told_to_end() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a PID namespace needs root");
            return;
        }
        let birth = Birth {
            namespaces: Some(Namespaces::CLONE_NEWPID),
            ..Birth::default()
        };
        let (ready, mut told) = io::pipe().unwrap();
        let child = spawn(birth, || {
            reset_all();
            exit_when_told().unwrap();
            io::Write::write_all(&mut &told, b"x").unwrap();
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
        io::Write::flush(&mut told).unwrap();
        child.signal(libc::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(143));
    }

    #[test]
    fn ignored_signals_act_again() {
        let child = spawn(Birth::default(), || {
            // The Rust runtime ignores SIGPIPE.
            reset_all();
            let (reader, writer) = io::pipe().unwrap();
            drop(reader);
            let _ = io::Write::write(&mut &writer, b"x");
            0
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Signal(libc::SIGPIPE));
    }
}
