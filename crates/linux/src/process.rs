//! Child processes made by clone3(2), watched through pidfds.
//!
//! [`spawn`] runs a closure in the child. It is a fork: memory is copied, only
//! the calling thread exists in the child. Our processes call it while they
//! have one thread, so that no lock can be held by a thread that is gone.

use std::{
    convert::Infallible,
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    panic::AssertUnwindSafe,
};

use crate::check;

/// New namespaces for a child, as flags of clone3(2) and unshare(2).
pub use nix::sched::CloneFlags as Namespaces;

/// Flag of clone3(2) from <linux/sched.h>; libc's constant is cut to 32 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Where and how a child begins its life.
#[derive(Debug, Default, Clone, Copy)]
pub struct Birth<'a> {
    /// Namespaces that the child does not share with its parent.
    pub namespaces: Option<Namespaces>,
    /// Directory of a cgroup v2 that the child is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child process of ours. Dropping it neither kills nor reaps.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// exit(2) with this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Exit {
    /// One number as a shell shows it: the code, or 128 + signal.
    pub fn shell_status(self) -> u32 {
        match self {
            Self::Code(code) => (code & 0xff) as u32,
            Self::Signal(signal) => 128 + signal as u32,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Makes a child that runs `body` and exits with the code it returns. A panic
/// in `body` ends the child with code 101.
///
/// # Errors
/// Those of clone3(2): EPERM without the right to make the namespaces, EAGAIN
/// at the process limit, ENOSPC at the namespace limit.
pub fn spawn(birth: Birth<'_>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    let mut flags = libc::CLONE_PIDFD as u64;
    if let Some(namespaces) = birth.namespaces {
        flags |= namespaces.bits() as u32 as u64;
    }
    if birth.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    // SAFETY: clone_args is plain data; zero is a valid value of every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = birth.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: args is valid for its size and points to pidfd, which outlives
    // the call; without CLONE_VM the child has its own copy of the stack.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    })?;
    if pid == 0 {
        let code = std::panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
        // SAFETY: _exit ends the child here: none of the parent's destructors
        // or exit handlers run a second time.
        unsafe { libc::_exit(code) }
    }
    Ok(Child {
        pid: pid as u32,
        // SAFETY: the kernel has stored a new descriptor that nobody else owns.
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    })
}

impl Child {
    /// Process id in the caller's PID namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Becomes readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends a signal; to an ended process it is no error.
    ///
    /// # Errors
    /// EINVAL for an unknown signal, EPERM.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match signal_pidfd(self.pidfd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Waits until the process has ended and reaps it.
    ///
    /// # Errors
    /// ECHILD when it was reaped elsewhere.
    pub fn wait(&self) -> io::Result<Exit> {
        loop {
            match self.reap(0) {
                Ok(Some(exit)) => return Ok(exit),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reaps the process if it has ended already.
    ///
    /// # Errors
    /// ECHILD when it was reaped elsewhere.
    pub fn try_wait(&self) -> io::Result<Option<Exit>> {
        self.reap(libc::WNOHANG)
    }

    fn reap(&self, flags: i32) -> io::Result<Option<Exit>> {
        // SAFETY: siginfo_t is plain data; zero is a valid value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: info is valid for writing, the pidfd is open.
        check(i64::from(unsafe {
            libc::waitid(
                libc::P_PIDFD,
                self.pidfd.as_raw_fd() as libc::id_t,
                &raw mut info,
                libc::WEXITED | flags,
            )
        }))?;
        // SAFETY: waitid filled the SIGCHLD form of siginfo, or left zeroes.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Ok(None);
        }
        Ok(Some(match info.si_code {
            libc::CLD_EXITED => Exit::Code(status),
            _ => Exit::Signal(status),
        }))
    }
}

/// Opens a pidfd for a running process.
///
/// # Errors
/// ESRCH when there is none of that id.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal through a pidfd.
///
/// # Errors
/// ESRCH when the process has been reaped.
pub fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo asks for the same as kill(2).
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// Asks the kernel to kill this process when the thread that made it ends, and
/// tells whether that has happened already. `parent` is the parent's id as seen
/// from here (0 across a PID namespace).
///
/// Call it last before exec: a change of credentials clears the request.
///
/// # Errors
/// EOWNERDEAD when the parent is gone.
pub fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: prctl with integers only.
    check(i64::from(unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)
    }))?;
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::getppid() } as u32 != parent {
        return Err(io::Error::from_raw_os_error(libc::EOWNERDEAD));
    }
    Ok(())
}

/// Has the process lists show this command instead of the arguments that the
/// process was made with. The name of the thread is left.
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE outside of every user namespace.
pub fn show_as(command: &CStr) -> io::Result<()> {
    // Never given back, and on the heap: nobody is shown what is in a file.
    let kept = Box::leak(Box::<[u8]>::from(command.to_bytes_with_nul()));
    let bytes = kept.as_ptr_range();
    // The beginning first: at no time may it lie behind the end.
    for (which, address) in [
        (libc::PR_SET_MM_ARG_START, bytes.start),
        (libc::PR_SET_MM_ARG_END, bytes.end),
    ] {
        // SAFETY: the kernel only notes where it is to read; what is there
        // stays for the life of the program.
        check(i64::from(unsafe {
            libc::prctl(libc::PR_SET_MM, which, address, 0_u64, 0_u64)
        }))?;
    }
    Ok(())
}

/// Replaces the program of this process. Returns only when that fails.
///
/// # Errors
/// Those of execve(2): ENOENT, EACCES, ENOEXEC …
pub fn exec(program: &[u8], args: &[Vec<u8>], env: &[Vec<u8>]) -> io::Result<Infallible> {
    let program = crate::c_string(program)?;
    let args = c_strings(args)?;
    let env = c_strings(env)?;
    match nix::unistd::execve(&program, &args, &env) {
        Ok(never) => match never {},
        Err(errno) => Err(errno.into()),
    }
}

fn c_strings(list: &[Vec<u8>]) -> io::Result<Vec<std::ffi::CString>> {
    list.iter().map(|bytes| crate::c_string(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_and_signals_come_back() {
        let child = spawn(Birth::default(), || 7).unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(7));

        let child = spawn(Birth::default(), || {
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        child.signal(libc::SIGKILL).unwrap();
        let exit = child.wait().unwrap();
        assert_eq!(exit, Exit::Signal(libc::SIGKILL));
        assert_eq!(exit.shell_status(), 137);
        child.signal(libc::SIGKILL).unwrap();
        assert_eq!(child.wait().unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }

    #[test]
    fn a_panic_in_the_child_stays_there() {
        let child = spawn(Birth::default(), || {
            std::panic::set_hook(Box::new(|_| {}));
            panic!("on purpose")
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(101));
    }

    #[test]
    fn exec_tells_why_it_failed() {
        let error = exec(b"/no/such/program", &[b"x".to_vec()], &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = exec(b"/bad\0name", &[], &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_process_can_be_shown_as_something_else() {
        let shown = spawn(Birth::default(), || {
            match show_as(c"/other") {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => return 2,
                other => other.unwrap(),
            }
            let command = std::fs::read("/proc/self/cmdline").unwrap();
            i32::from(command == b"/other\0")
        });
        match shown.unwrap().wait().unwrap() {
            Exit::Code(2) => println!("skipped: needs CAP_SYS_RESOURCE"),
            exit => assert_eq!(exit, Exit::Code(1)),
        }
    }

    #[test]
    fn a_stranger_as_parent_is_noticed() {
        let child = spawn(Birth::default(), || {
            i32::from(die_with_parent(1).is_err())
                + 2 * i32::from(die_with_parent(std::os::unix::process::parent_id()).is_err())
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(1));
    }
}
