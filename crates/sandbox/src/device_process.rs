//! The jailed process that serves the VM's file share and vsock: started here,
//! written in `casemate-devices`. It is the same binary under another verb.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use casemate_config::CachePolicy;
use casemate_linux::{
    process::{Child, Exit},
    program, reactor,
};
use nix::libc;
use tokio::io::unix::AsyncFd;

/// The hidden verb of the command line that runs it.
pub const VERB: &str = "devices";

/// Its standard error, in the sandbox's directory.
pub const LOG: &str = "devices.log";

/// How much of the log's end goes into a message, in bytes.
const LOG_TAIL: usize = 512;

/// Why the device process did not start.
#[derive(Debug, thiserror::Error)]
#[error("device process: {what}: {source}")]
pub struct Error {
    what: &'static str,
    source: io::Error,
}

/// What it is started with.
pub struct Start<'a> {
    /// The share, in this mount namespace.
    pub share: &'a Path,
    /// Directory of the hybrid sockets.
    pub vsock_directory: &'a Path,
    /// Where the VMM's virtio-fs device connects.
    pub fs_listener: BorrowedFd<'a>,
    /// Where the VMM's virtio-vsock device connects.
    pub vsock_listener: BorrowedFd<'a>,
    /// The hybrid socket.
    pub hybrid_listener: BorrowedFd<'a>,
    /// Context id of the guest.
    pub guest_cid: u64,
    /// How long the guest may trust its cache.
    pub cache: CachePolicy,
    /// File for its standard error.
    pub log: &'a Path,
}

/// The running device process. It dies with the monitor.
pub struct DeviceProcess {
    child: AsyncFd<OwnedFd>,
    process: Child,
    log: PathBuf,
}

impl DeviceProcess {
    /// Starts it; its jail closes in parallel with what the caller does next.
    /// Requests wait in the listening sockets until it serves them.
    ///
    /// # Errors
    /// When the process or its log cannot be made.
    pub fn spawn(start: Start<'_>) -> Result<Self, Error> {
        let failed = |what| move |source| Error { what, source };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(start.log)
            .map_err(failed("open its log"))?;
        let descriptors = [
            start.fs_listener,
            start.vsock_listener,
            start.hybrid_listener,
        ];
        let started = program::Start {
            stdio: [None, None, Some(log.as_fd())],
            descriptors: &descriptors,
            dies_with_parent: true,
            ..program::Start::default()
        };
        let process = program::start("/proc/self/exe", &command_line(&start), started)
            .map_err(failed("start"))?;
        let pidfd = process
            .pidfd()
            .try_clone_to_owned()
            .map_err(failed("watch"))?;
        Ok(Self {
            child: reactor::register_readable(pidfd).map_err(failed("watch"))?,
            process,
            log: start.log.to_owned(),
        })
    }

    /// Process id on the host.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Resolves when the process has ended: how, if that is known, and one line
    /// that says so. It ends in order after the VMM has hung up.
    pub async fn ended(&self) -> (Option<Exit>, String) {
        // An error here means that the runtime is shutting down.
        let _ = self.child.readable().await;
        let exit = self.process.try_wait().ok().flatten();
        let how = exit.map_or("ended".to_owned(), |exit| exit.to_string());
        let line = match self.last_words() {
            Some(words) => format!("the device process {how}: {words}"),
            None => format!("the device process {how}"),
        };
        (exit, line)
    }

    /// Ends it and waits for that.
    pub fn kill(&self) {
        let killed = self.process.signal(libc::SIGKILL);
        if killed.is_ok() {
            // Reaped elsewhere, or now.
            let _ = self.process.wait();
        }
    }

    fn last_words(&self) -> Option<String> {
        let text = fs::read(&self.log).ok()?;
        let tail =
            String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).into_owned();
        let line = tail.trim_end().lines().last()?;
        Some(crate::agent::printable(line)).filter(|line| !line.is_empty())
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `casemate devices …`, with the descriptors at 3, 4 and 5.
fn command_line(start: &Start<'_>) -> Vec<Vec<u8>> {
    let arguments = casemate_devices::CommandLine {
        share: start.share.to_owned(),
        vsock_dir: start.vsock_directory.to_owned(),
        fs_listener: 3,
        vsock_listener: 4,
        hybrid_listener: 5,
        guest_cid: start.guest_cid,
        ready: None,
        cache: start.cache,
        settings: casemate_devices::Settings::default(),
    };
    let words = arguments.to_args().into_iter();
    let words = words.map(OsString::into_encoded_bytes);
    let verb = [b"casemate".to_vec(), VERB.into()];
    verb.into_iter().chain(words).collect()
}
