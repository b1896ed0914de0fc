//! `stand-in`: the process on the host that clients watch in place of the
//! container's. It shuts itself in, then waits for the monitor to tell it the
//! exit status; when the monitor is gone, so is the container.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
};

use anyhow::{Context, Result};
use casemate_linux::{capability, descriptor, terminal};
use casemate_sandbox::{
    LOST,
    facade::{NOTHING, PROCESSES},
    processes::{READY, RELEASED},
    stand_in::{TerminalSize, told_status},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::stat::Mode,
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{chdir, mkdir, pivot_root, setsid},
};

use crate::{arguments::StandIn, log};

/// Where the command line has put things.
const CONTROL_FD: i32 = 3;
const CALLER_FD: i32 = 4;

/// Where the new root is put together; any existing directory serves.
const STAGE: &str = "/proc";

/// # Errors
/// When it cannot shut itself in; the same line goes to the command line.
pub fn run(arguments: &StandIn) -> Result<ExitCode> {
    let control = UnixStream::from(descriptor::inherited(CONTROL_FD).context("control socket")?);
    let mut caller = UnixStream::from(descriptor::inherited(CALLER_FD).context("caller")?);
    match shut_in(arguments) {
        Ok(()) => caller.write_all(READY).context("readiness")?,
        Err(error) => {
            let _ = writeln!(caller, "{}", log::one_line(&error));
            return Err(error);
        }
    }
    let mut watch = Watch {
        control,
        caller: Some(caller),
        terminal: arguments.terminal.then(Terminal::watch).transpose()?,
    };
    Ok(ExitCode::from(watch.status()? as u8))
}

/// Leaves the host: nothing of it can be seen or changed from here.
fn shut_in(arguments: &StandIn) -> Result<()> {
    if let Some(path) = &arguments.netns {
        let context = || format!("network namespace {}", path.display());
        let namespace = File::open(path).with_context(context)?;
        setns(namespace, CloneFlags::CLONE_NEWNET).with_context(context)?;
    }
    // A session of its own, for the terminal's signals.
    setsid().context("new session")?;
    if arguments.terminal {
        terminal::make_controlling(std::io::stdin().as_fd()).context("terminal")?;
    }
    enter_empty_root().context("empty root")?;
    capability::limit_bounding(0).context("capabilities")?;
    capability::set(capability::Sets::default()).context("capabilities")?;
    prctl::set_no_new_privs().context("no_new_privs")
}

/// A root with nothing but a /proc of this PID namespace and an empty folder:
/// the monitor shows both to who enters the namespace, with the container's
/// files ([`casemate_sandbox::facade`]).
fn enter_empty_root() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    let locked = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
    mount(
        Some("casemate"),
        STAGE,
        Some("tmpfs"),
        locked,
        Some("mode=0755,size=16k"),
    )?;
    chdir(STAGE)?;
    for folder in [PROCESSES, NOTHING] {
        mkdir(folder, Mode::from_bits_truncate(0o555))?;
    }
    mount(Some("proc"), PROCESSES, Some("proc"), locked, NONE)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    let sealed = locked | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_BIND;
    mount(NONE, "/", NONE, sealed, NONE)?;
    chdir("/")
}

/// What the stand-in waits for.
struct Watch {
    /// The monitor tells the exit status, or is gone.
    control: UnixStream,
    /// Who made us, until it lets us go. When it is gone before, nobody will
    /// ever know of the process.
    caller: Option<UnixStream>,
    /// Whose every size the monitor is told.
    terminal: Option<Terminal>,
}

impl Watch {
    /// Sleeps until the exit status is known.
    fn status(&mut self) -> Result<u32> {
        if let Some(terminal) = &self.terminal {
            // It may have been set before anybody watched.
            terminal.report_size(&mut self.control);
        }
        loop {
            let mut fds = vec![PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.caller.iter().map(readable));
            fds.extend(
                self.terminal
                    .iter()
                    .map(|terminal| readable(&terminal.resized)),
            );
            poll(&mut fds, PollTimeout::NONE).context("poll")?;
            let mut happened = fds.iter().map(|fd| fd.any().unwrap_or(true));
            let told = happened.next() == Some(true);
            let caller_spoke = self.caller.is_some() && happened.next() == Some(true);
            let resized = self.terminal.is_some() && happened.next() == Some(true);
            drop(happened);
            drop(fds);
            if let (true, Some(terminal)) = (resized, &self.terminal) {
                terminal.resized.read_signal().context("signals")?;
                terminal.report_size(&mut self.control);
            }
            if told {
                return Ok(told_status(&self.control));
            }
            if caller_spoke && let Some(mut caller) = self.caller.take() {
                let mut word = [0];
                if caller.read_exact(&mut word).is_err() || word != [RELEASED] {
                    return Ok(LOST);
                }
            }
        }
    }
}

fn readable(of: &impl AsFd) -> PollFd<'_> {
    PollFd::new(of.as_fd(), PollFlags::POLLIN)
}

/// The terminal on standard input.
struct Terminal {
    resized: SignalFd,
    stdin: OwnedFd,
}

impl Terminal {
    fn watch() -> Result<Self> {
        let mut watched = SigSet::empty();
        watched.add(Signal::SIGWINCH);
        watched.thread_block().context("signals")?;
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        Ok(Self {
            resized: SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC).context("signals")?,
            stdin: stdin.context("terminal")?,
        })
    }

    fn report_size(&self, control: &mut UnixStream) {
        if let Ok((columns, rows)) = terminal::size(self.stdin.as_fd())
            && columns > 0
        {
            // Should the monitor be gone, the wait sees it.
            let _ = control.write_all(&TerminalSize { columns, rows }.to_bytes());
        }
    }
}
