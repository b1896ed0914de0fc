//! A running QEMU process: its last words, and its end.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use casemate_linux::{
    process::{Child, Exit as Status, signal_pidfd},
    reactor::register_readable,
};
use nix::libc::{O_DIRECTORY, O_PATH, SIGKILL};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    Cause, Error, Exit,
    console::{Console, Tail},
    jail::{self, Jail},
    printable::{last_line, printable},
};

/// How long the last words may take to arrive after the end: they are in the
/// pipes already.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the kernel writes before the reason of its panic.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";

/// Longest piece of foreign text in an error.
const QUOTE: usize = 300;

/// QEMU, killed when this is dropped.
pub(super) struct Process {
    pid: u32,
    pidfd: OwnedFd,
    /// Its directory below `/proc`, never another process's.
    proc: File,
    killed: Arc<AtomicBool>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Starts QEMU; returns when it runs, or could not be made. The reasons for
    /// a shutdown that it tells its control connection arrive by `shutdowns`.
    pub(super) async fn start(
        jail: Jail,
        output: OwnedFd,
        console: Console,
        shutdowns: mpsc::Receiver<String>,
    ) -> Result<Self, Error> {
        let output = pipe::Receiver::from_owned_fd(output).map_err(spawning("its output"))?;
        let (child, report) = jail::start(&jail).map_err(spawning("making a process"))?;
        // Its peers have to see the end of QEMU, so no copy may stay here.
        drop(jail);
        let process = Self::watch(child, output, console, shutdowns)?;
        if let Some(failure) = read_report(report).await.map_err(spawning("its report"))? {
            process.exited().await;
            return Err(Error::Spawn {
                step: failure.step,
                source: failure.source,
            });
        }
        Ok(process)
    }

    fn watch(
        child: Child,
        output: pipe::Receiver,
        console: Console,
        shutdowns: mpsc::Receiver<String>,
    ) -> Result<Self, Error> {
        let (ended, exit) = watch::channel(None);
        let process = Self::over(&child, exit)
            .inspect_err(|_| drop(child.signal(SIGKILL)))
            .map_err(spawning("watching the process"))?;
        let evidence = Evidence {
            console: tokio::spawn(console.copy()),
            output: tokio::spawn(last_output(output)),
            shutdowns,
            killed: Arc::clone(&process.killed),
        };
        tokio::spawn(async move {
            let status = wait(&child).await.unwrap_or_else(|error| {
                tracing::error!(pid = child.pid(), %error, "the end of QEMU cannot be watched");
                Status::Code(255)
            });
            let cause = evidence.cause(status).await;
            ended.send_replace(Some(Exit { cause, status }));
        });
        Ok(process)
    }

    fn over(child: &Child, exit: watch::Receiver<Option<Exit>>) -> io::Result<Self> {
        Ok(Self {
            pid: child.pid(),
            pidfd: child.pidfd().try_clone_to_owned()?,
            proc: File::options()
                .read(true)
                .custom_flags(O_PATH | O_DIRECTORY)
                .open(format!("/proc/{}", child.pid()))?,
            killed: Arc::default(),
            exit,
        })
    }

    /// A file of the process below `/proc`.
    pub(super) fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{file}", self.proc.as_raw_fd()).into()
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        // The process may have been reaped meanwhile.
        let _ = signal_pidfd(self.pidfd.as_fd(), SIGKILL);
    }

    pub(super) async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let known = exit.wait_for(Option::is_some).await.ok();
        known.and_then(|exit| exit.clone()).unwrap_or(Exit {
            // Only when the runtime goes down, and QEMU with it.
            cause: Cause::Killed,
            status: Status::Signal(SIGKILL),
        })
    }

    /// The end, if it has come already.
    pub(super) fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(super) fn spawning(step: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Spawn {
        step: step.to_owned(),
        source,
    }
}

async fn read_report(report: OwnedFd) -> io::Result<Option<jail::Failure>> {
    let mut text = Vec::new();
    let mut report = pipe::Receiver::from_owned_fd(report)?;
    report.read_to_end(&mut text).await?;
    Ok(jail::read_failure(&text))
}

async fn wait(child: &Child) -> io::Result<Status> {
    let pidfd = register_readable(child.pidfd().try_clone_to_owned()?)?;
    loop {
        let mut ended = pidfd.readable().await?;
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ended.clear_ready();
    }
}

async fn last_output(mut output: pipe::Receiver) -> Vec<u8> {
    let mut tail = Tail::default();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut chunk).await {
        tracing::debug!(text = %printable(&chunk[..count], QUOTE), "QEMU says");
        tail.push(&chunk[..count]);
    }
    tail.into_bytes()
}

/// What is known about the end beside the status.
struct Evidence {
    console: JoinHandle<Vec<u8>>,
    output: JoinHandle<Vec<u8>>,
    shutdowns: mpsc::Receiver<String>,
    killed: Arc<AtomicBool>,
}

impl Evidence {
    async fn cause(self, status: Status) -> Cause {
        let Self {
            console,
            output,
            mut shutdowns,
            killed,
        } = self;
        let reason = async {
            let mut last = None;
            while let Some(reason) = shutdowns.recv().await {
                last = Some(reason);
            }
            last
        };
        let (console, output, reason) = tokio::join!(
            timeout(LAST_WORDS, console),
            timeout(LAST_WORDS, output),
            timeout(LAST_WORDS, reason),
        );
        let console = console.ok().and_then(Result::ok).unwrap_or_default();
        let output = output.ok().and_then(Result::ok).unwrap_or_default();
        match (status, reason.ok().flatten().as_deref()) {
            (Status::Signal(SIGKILL), _) if killed.load(Ordering::Relaxed) => Cause::Killed,
            (Status::Code(0), Some("guest-shutdown")) => Cause::PowerOff,
            (Status::Code(0), Some("guest-reset" | "guest-panic")) => {
                panic_words(&console).map_or(Cause::Reset, Cause::GuestPanic)
            }
            _ => Cause::Program(last_line(&output, QUOTE)),
        }
    }
}

/// The kernel's reason for a panic, from the end of its console output.
fn panic_words(console: &[u8]) -> Option<String> {
    let at = console
        .windows(PANIC.len())
        .rposition(|words| words == PANIC)?;
    let rest = &console[at + PANIC.len()..];
    let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
    Some(printable(&rest[..end.unwrap_or(rest.len())], QUOTE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_panic_is_found() {
        let console = b"[    0.5] Kernel panic - not syncing: Attempted to kill init! \
                        exitcode=0x00000300\r\n[    0.6] CPU: 0 PID: 1\r\n";
        assert_eq!(
            panic_words(console).as_deref(),
            Some("Attempted to kill init! exitcode=0x00000300")
        );
        assert_eq!(panic_words(b"login: "), None);
        assert_eq!(panic_words(b""), None);
    }
}
