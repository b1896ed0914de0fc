//! The life of the device process: enter the jail, build the devices, seal the
//! jail, serve until the VMM hangs up.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use casemate_linux::process::die_with_parent;
use nix::sched::{CloneFlags, unshare};
use tracing::info;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::jail::{self, Jail};
use crate::options::{CommandLine, Options};
use crate::share::{self, Surroundings};
use crate::vsock::backend::{Backend as VsockBackend, Parts};
use crate::{Error, logging};

/// Descriptors the process itself needs at most, besides one for each vsock
/// connection and those of the guest's files.
const OWN_DESCRIPTORS: u64 = 128;

/// Runs the verb `devices`: what stands behind it, as the monitor wrote it.
/// Logs to standard error; no logger may be there before.
///
/// # Errors
/// As [`run`], and when the command line makes no sense.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    logging::start();
    let line = CommandLine::from_args(args)?;
    run(line.adopt().map_err(Error::Descriptor)?)
}

/// Serves both devices until the VMM has hung up on both. To be called once,
/// by a process with a single thread, which it changes for good.
///
/// # Errors
/// A jail that cannot be closed, devices that cannot be made, and a VMM that
/// breaks the vhost-user protocol.
pub fn run(options: Options) -> Result<(), Error> {
    let (prepared, ready) = prepare(options)?;
    let Prepared {
        share,
        fs_listener,
        vsock,
        vsock_listener,
        vsock_dir,
    } = prepared;
    let (report, reports) = channel();
    start("vsock", report.clone(), move |report| {
        serve_vsock(vsock, vsock_dir, vsock_listener, report)
    })?;
    start("fs", report, move |report| {
        serve_share(share, fs_listener, report)
    })?;
    supervise(&reports, ready)
}

/// What is left to do once the jail is sealed.
struct Prepared {
    share: share::Backend,
    fs_listener: Listener,
    vsock: Arc<Mutex<VsockBackend>>,
    vsock_listener: Listener,
    vsock_dir: OwnedFd,
}

fn prepare(options: Options) -> Result<(Prepared, Option<OwnedFd>), Error> {
    die_with_parent(nix::unistd::getppid().as_raw() as u32).map_err(Error::Parent)?;
    fail_loudly();
    let limit = jail::raise_descriptor_limit()?;
    let jail = Jail::enter(&options.share, &options.vsock_dir)?;
    let settings = options.settings;
    let reserve = OWN_DESCRIPTORS + u64::from(settings.vsock.connections);
    let descriptors = limit
        .checked_sub(reserve)
        .ok_or(Error::TooFewDescriptors { limit, reserve })?;
    let surroundings = Surroundings {
        proc_self_fd: jail.proc_self_fd,
        mountinfo: jail.mountinfo,
        descriptors,
    };
    let share =
        share::backend(surroundings, options.cache, settings.inodes).map_err(Error::Share)?;
    let vsock = VsockBackend::new(Parts {
        guest_cid: options.guest_cid,
        limits: settings.vsock,
        // The vsock thread's working directory.
        directory: PathBuf::new(),
        listener: UnixListener::from(options.hybrid_listener),
    });
    jail::seal(settings.inodes, settings.syscalls)?;
    let prepared = Prepared {
        share,
        fs_listener: UnixListener::from(options.fs_listener).into(),
        vsock,
        vsock_listener: UnixListener::from(options.vsock_listener).into(),
        vsock_dir: jail.vsock_dir,
    };
    Ok((prepared, options.ready))
}

/// A thread that panics must take the process with it: a guest whose device
/// died in silence would hang.
fn fail_loudly() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// What a device's thread has to say.
enum Report {
    /// The VMM's requests are handled from now on.
    Serving,
    /// The VMM hung up, or an error.
    Ended(Result<(), Error>),
}

fn start(
    device: &'static str,
    report: Sender<Report>,
    serve: impl FnOnce(&Sender<Report>) -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let body = move || {
        let ended = Report::Ended(serve(&report));
        // Nobody listens any more if the other device has failed.
        let _ = report.send(ended);
    };
    thread::Builder::new()
        .name(device.to_owned())
        .spawn(body)
        .map_err(Error::Thread)?;
    Ok(())
}

fn supervise(reports: &Receiver<Report>, ready: Option<OwnedFd>) -> Result<(), Error> {
    let (mut starting, mut running) = (2, 2);
    let mut ready = ready.map(File::from);
    while running > 0 {
        // Both threads report their end before they drop their senders.
        match reports.recv().expect("a device's thread reports its end") {
            Report::Serving => starting -= 1,
            Report::Ended(result) => {
                result?;
                running -= 1;
            }
        }
        if starting == 0
            && let Some(mut ready) = ready.take()
        {
            ready.write_all(&[1]).map_err(Error::Ready)?;
        }
    }
    info!("the VMM has hung up");
    Ok(())
}

fn serve_share(
    backend: share::Backend,
    mut listener: Listener,
    report: &Sender<Report>,
) -> Result<(), Error> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<BitmapMmapRegion>::new());
    let mut daemon =
        VhostUserDaemon::new("fs control".to_owned(), backend, memory).map_err(Error::Daemon)?;
    let _ = report.send(Report::Serving);
    daemon.start(&mut listener).map_err(Error::Daemon)?;
    until_hung_up(daemon.wait())
}

fn serve_vsock(
    backend: Arc<Mutex<VsockBackend>>,
    directory: OwnedFd,
    mut listener: Listener,
    report: &Sender<Report>,
) -> Result<(), Error> {
    // This thread and those it starts find the host's sockets in their working
    // directory, which nothing else leads to. The file server's thread changes
    // its own at times.
    unshare(CloneFlags::CLONE_FS).map_err(|err| Error::Vsock(err.into()))?;
    nix::unistd::fchdir(&directory).map_err(|err| Error::Vsock(err.into()))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<()>::new());
    let mut daemon = VhostUserDaemon::new("vsock control".to_owned(), backend.clone(), memory)
        .map_err(Error::Daemon)?;
    let epoll = epoll_of(&daemon).map_err(Error::Vsock)?;
    backend
        .lock()
        .expect("a panic ends the process")
        .start(epoll)
        .map_err(Error::Vsock)?;
    let _ = report.send(Report::Serving);
    daemon.start(&mut listener).map_err(Error::Daemon)?;
    let ended = daemon.wait();
    let counters = backend.lock().expect("a panic ends the process").counters();
    info!(?counters, "vsock ended");
    until_hung_up(ended)
}

/// The epoll instance of the device's only worker, which lives as long as the
/// process.
fn epoll_of(daemon: &VhostUserDaemon<Arc<Mutex<VsockBackend>>>) -> io::Result<OwnedFd> {
    let handlers = daemon.get_epoll_handlers();
    let [worker] = handlers.as_slice() else {
        return Err(io::Error::other("the vsock device has one worker"));
    };
    // SAFETY: the worker owns the descriptor and is borrowed for the call.
    unsafe { BorrowedFd::borrow_raw(worker.as_raw_fd()) }.try_clone_to_owned()
}

/// The VMM's death may cut a message short.
fn until_hung_up(result: Result<(), DaemonError>) -> Result<(), Error> {
    match result {
        Err(DaemonError::HandleRequest(
            ProtocolError::Disconnected
            | ProtocolError::PartialMessage
            | ProtocolError::SocketBroken(_),
        )) => Ok(()),
        other => other.map_err(Error::Daemon),
    }
}
