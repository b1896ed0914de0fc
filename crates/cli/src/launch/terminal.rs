//! The container's standard streams on the client's side.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use casemate_linux::{socket, terminal};
use nix::{
    fcntl::OFlag,
    pty::posix_openpt,
    sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
};

/// What the process in the guest is connected to.
pub struct Streams {
    /// stdin, stdout, stderr for the monitor.
    pub client: [Option<OwnedFd>; 3],
    /// The terminal whose size the stand-in follows.
    pub controlling: Option<OwnedFd>,
    /// Our own terminal, in raw mode as long as this lives.
    pub own: Option<OwnTerminal>,
}

/// The caller's streams, a new terminal behind the console socket, or the
/// caller's own terminal.
///
/// # Errors
/// When the console socket does not answer, or there is no terminal to use.
pub fn streams(console_socket: Option<&Path>, wants_terminal: bool) -> Result<Streams> {
    match (console_socket, wants_terminal) {
        (Some(socket), _) => behind_console_socket(socket),
        (None, true) => own_terminal(),
        (None, false) => Ok(Streams {
            client: [0, 1, 2].map(caller),
            controlling: None,
            own: None,
        }),
    }
}

/// A copy of one of our standard streams; absent when it is closed.
fn caller(number: i32) -> Option<OwnedFd> {
    match number {
        0 => std::io::stdin().as_fd().try_clone_to_owned().ok(),
        1 => std::io::stdout().as_fd().try_clone_to_owned().ok(),
        _ => std::io::stderr().as_fd().try_clone_to_owned().ok(),
    }
}

/// Makes a terminal and sends its master to the client (runc's console socket).
/// The guest has the line discipline; ours only carries bytes.
fn behind_console_socket(path: &Path) -> Result<Streams> {
    let context = || format!("console socket {}", path.display());
    let master =
        posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).context("new terminal")?;
    let slave = terminal::open_peer(master.as_fd()).context("new terminal")?;
    set_raw(&slave)?;
    let client = socket::connect(path).with_context(context)?;
    // The name is what runc sends; receivers show it or ignore it.
    socket::send_with_descriptors(client.as_fd(), b"/dev/ptmx", &[master.as_fd()])
        .with_context(context)?;
    let copy = || slave.try_clone().context("terminal");
    Ok(Streams {
        client: [Some(copy()?), Some(copy()?), None],
        controlling: Some(slave),
        own: None,
    })
}

fn own_terminal() -> Result<Streams> {
    let stdin = std::io::stdin();
    ensure!(
        nix::unistd::isatty(&stdin).unwrap_or(false),
        "the container wants a terminal, but standard input is none"
    );
    let own = OwnTerminal::take(stdin.as_fd().try_clone_to_owned().context("terminal")?)?;
    Ok(Streams {
        client: [caller(0), caller(1), None],
        controlling: None,
        own: Some(own),
    })
}

/// Our own terminal in raw mode; as it was when dropped.
pub struct OwnTerminal {
    terminal: File,
    before: Termios,
}

impl OwnTerminal {
    fn take(terminal: OwnedFd) -> Result<Self> {
        let before = set_raw(&terminal)?;
        Ok(Self {
            terminal: terminal.into(),
            before,
        })
    }

    /// Columns and rows.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn size(&self) -> Result<(u16, u16)> {
        terminal::size(self.terminal.as_fd()).context("size of the terminal")
    }
}

impl Drop for OwnTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

fn set_raw(terminal: &OwnedFd) -> Result<Termios> {
    let before = tcgetattr(terminal).context("mode of the terminal")?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    tcsetattr(terminal, SetArg::TCSANOW, &raw).context("mode of the terminal")?;
    Ok(before)
}
