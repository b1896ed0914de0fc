//! Standard streams of a process: given files, or a terminal of the
//! container.

use std::os::fd::{AsFd, OwnedFd};

use casemate_linux::{bind::clone_at, mount::attach, terminal};
use casemate_protocol::agent::Process;
use nix::{
    errno::Errno,
    sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs},
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::root::Root;
use crate::error::{Doing, Result};

/// Uses files as 0, 1 and 2.
pub(super) fn use_files([stdin, stdout, stderr]: &[OwnedFd; 3]) -> Result<()> {
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .doing(|| "place the standard streams".into())
}

/// Makes a terminal of the container's own devpts the controlling one and uses
/// it as 0, 1 and 2; with `console` it is /dev/console, too. Returns the
/// master.
pub(super) fn make(root: &Root, process: &Process, console: bool) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let master = root
        .open("/dev/pts/ptmx", flags)
        .doing(|| "open /dev/pts/ptmx".into())?;
    // The container could have put anything there; a terminal must be one.
    let file_system = fstatfs(&master).doing(|| "statfs /dev/pts/ptmx".into())?;
    if file_system.filesystem_type() != DEVPTS_SUPER_MAGIC {
        return Err(Errno::ENOTTY).doing(|| "open /dev/pts/ptmx".into());
    }
    let peer = terminal::open_peer(master.as_fd()).doing(|| "open the terminal".into())?;
    if let (Ok(columns @ 1..), Ok(rows @ 1..)) =
        (u16::try_from(process.columns), u16::try_from(process.rows))
    {
        terminal::resize(master.as_fd(), columns, rows).doing(|| "resize the terminal".into())?;
    }
    if console {
        let place = root
            .make_file("/dev/console")
            .doing(|| "create /dev/console".into())?;
        clone_at(peer.as_fd(), false)
            .and_then(|copy| attach(copy.as_fd(), place.as_fd()))
            .doing(|| "mount /dev/console".into())?;
    }
    terminal::make_controlling(peer.as_fd()).doing(|| "set the controlling terminal".into())?;
    dup2_stdin(&peer)
        .and_then(|()| dup2_stdout(&peer))
        .and_then(|()| dup2_stderr(&peer))
        .doing(|| "place the standard streams".into())?;
    Ok(master)
}
