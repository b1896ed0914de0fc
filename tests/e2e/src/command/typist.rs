//! A terminal, and the user in front of it: types, reads what the screen
//! shows, changes the window's size, hangs up. On the other side is a command,
//! or whatever a runtime has connected to a console socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::io::ioctl_fionread;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::collector::Collector;
use super::finished::{Exit, Finished, shown};
use crate::host::Host;
use crate::reaper;
use crate::wait::until_true;

/// The size of a terminal's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl From<Size> for Winsize {
    fn from(size: Size) -> Winsize {
        Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }
}

/// Somebody who types at a terminal.
pub struct Typist<'h> {
    host: &'h Host,
    line: String,
    /// The command that was started there.
    client: Option<Client>,
    /// The user's side of the terminal. The reader of the screen has it as
    /// well and lets go of it when `reading` is closed.
    terminal: Option<File>,
    reading: Option<UnixStream>,
    screen: Collector,
    /// So much of the screen was waited for.
    seen: usize,
    told: bool,
}

struct Client {
    pid: i32,
    since: Instant,
    limit: Duration,
}

impl<'h> Typist<'h> {
    /// In front of a terminal whose other side somebody else has.
    pub(crate) fn at(host: &'h Host, line: String, terminal: File) -> Result<Typist<'h>> {
        let name = ptsname(&terminal, Vec::new()).context("the terminal's name")?;
        let (reading, stop) = UnixStream::pair()?;
        let screen = UntilHungUp {
            terminal: terminal.try_clone()?,
            stop,
        };
        Ok(Typist {
            host,
            line,
            client: None,
            terminal: Some(terminal),
            reading: Some(reading),
            screen: Collector::named(screen, name.to_string_lossy().into_owned()),
            seen: 0,
            told: false,
        })
    }

    pub(super) fn start(
        host: &'h Host,
        line: String,
        mut command: Command,
        size: Size,
        limit: Duration,
    ) -> Result<Typist<'h>> {
        let (terminal, theirs) = terminal(size).context("a terminal")?;
        command
            .stdin(theirs.try_clone()?)
            .stdout(theirs.try_clone()?)
            .stderr(theirs);
        let since = Instant::now();
        let child = command.spawn().with_context(|| format!("start {line}"))?;
        // Who holds a side of the terminal keeps it from ending: so this does.
        drop(command);
        let mut typist = Typist::at(host, line, terminal)?;
        typist.client = Some(Client {
            pid: child.id() as i32,
            since,
            limit,
        });
        Ok(typist)
    }

    /// Types; a line ends with `\r`, as on a keyboard.
    pub fn type_text(&self, text: &str) -> Result<()> {
        let mut terminal = self.terminal.as_ref().context("the user has hung up")?;
        let typed = terminal.write_all(text.as_bytes());
        typed.with_context(|| self.story(&format!("{text:?} cannot be typed")))
    }

    /// Presses one key after the other, each when the one before was read: some
    /// programs know a key only by its coming alone.
    pub fn press(&self, keys: &str) -> Result<()> {
        for key in keys.chars() {
            self.type_text(&key.to_string())?;
            let terminal = self.terminal.as_ref().context("the user has hung up")?;
            // The kernel hands it over when it has time for that.
            std::thread::sleep(Duration::from_millis(400));
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let theirs = ioctl_tiocgptpeer(terminal, flags)?;
            until_true("the key to be read", Duration::from_secs(10), || {
                Ok(ioctl_fionread(&theirs)? == 0)
            })?;
        }
        Ok(())
    }

    /// Waits until the screen shows `what` behind everything that was waited
    /// for before, and gives what it shows from there up to it.
    pub fn await_text(&mut self, what: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.screen.ended_within(Duration::ZERO).is_ok();
            let bytes = self.screen.bytes();
            let unseen = &bytes[self.seen..];
            let found = unseen
                .windows(what.len())
                .position(|w| w == what.as_bytes());
            if let Some(place) = found {
                let length = place + what.len();
                self.seen += length;
                return Ok(plain(&unseen[..length]));
            }
            if ended || Instant::now() > deadline {
                let when = if ended {
                    "before the end".into()
                } else {
                    format!("within {limit:?}")
                };
                bail!("{}", self.story(&format!("{what:?} has not come {when}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Changes the size of the window; the kernel sends SIGWINCH to the command.
    pub fn resize(&self, size: Size) -> Result<()> {
        let terminal = self.terminal.as_ref().context("the user has hung up")?;
        tcsetwinsize(terminal, size.into()).context("change the window's size")
    }

    /// Takes the terminal away, as the end of a connection does: the kernel
    /// sends SIGHUP to the command.
    pub fn hang_up(&mut self) -> Result<()> {
        self.terminal = None;
        self.reading = None;
        let limit = Duration::from_secs(5);
        let read = self.screen.ended_within(limit);
        read.map_err(|_| anyhow::anyhow!("the terminal is still read"))
    }

    /// Sends a signal to the command, not through the terminal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.client()?.pid);
        kill(pid, signal).with_context(|| format!("{signal} to {}", self.line))
    }

    /// What the screen has shown so far.
    pub fn written(&self) -> Vec<u8> {
        self.screen.bytes()
    }

    /// Waits for the end of the command; what it gives has the whole screen as
    /// output.
    pub fn finish(mut self) -> Result<Finished> {
        let Client { since, limit, .. } = *self.client()?;
        let exit = self.exit_within(limit.saturating_sub(since.elapsed()))?;
        let took = since.elapsed();
        self.screen_ended()?;
        self.told = true;
        let finished = Finished {
            line: self.line.clone(),
            exit,
            took,
            stdout: self.written(),
            stderr: Vec::new(),
        };
        self.host.note(finished.to_string());
        Ok(finished)
    }

    /// Waits that long for the end of the command, whatever its terminal does.
    pub fn exit_within(&self, limit: Duration) -> Result<Exit> {
        let client = self.client()?;
        let exit = reaper::exit_of(client.pid, client.since, limit);
        exit.with_context(|| self.story(&format!("still runs after {limit:?}")))
    }

    /// Waits until nobody has the other side of the terminal any more.
    pub fn screen_ended(&self) -> Result<()> {
        if let Err(holders) = self.screen.ended_within(Duration::from_secs(5)) {
            let held = format!("its terminal is held open by {holders}");
            bail!("{}", self.story(&held));
        }
        Ok(())
    }

    fn client(&self) -> Result<&Client> {
        self.client
            .as_ref()
            .context("nothing was started on this terminal")
    }

    fn story(&self, what: &str) -> String {
        // What the user looks at: the end of it.
        const MOST: usize = 2000;
        let bytes = self.written();
        let screen = plain(&bytes[bytes.len().saturating_sub(MOST)..]);
        format!(
            "$ {}: {what}{}",
            self.line,
            shown("screen", screen.as_bytes())
        )
    }
}

impl Drop for Typist<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.host.note(self.story("was left by the scenario"));
        }
    }
}

/// The two sides of a new terminal: the user's and the command's.
fn terminal(size: Size) -> Result<(File, OwnedFd)> {
    // What other commands of the scenario inherit would keep it open.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let users = openpt(flags)?;
    grantpt(&users)?;
    unlockpt(&users)?;
    let commands = ioctl_tiocgptpeer(&users, flags)?;
    tcsetwinsize(&users, size.into())?;
    Ok((users.into(), commands))
}

/// What a screen shows as lines of text.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.replace("\r\n", "\n").replace('\x1b', "␛")
}

/// Reads the user's side until it is told to stop: a read alone would hold on
/// to it until the command ends.
struct UntilHungUp {
    terminal: File,
    stop: UnixStream,
}

impl Read for UntilHungUp {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut waiting = [
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut waiting, PollTimeout::NONE)?;
        if waiting[0].any() == Some(true) {
            return Ok(0);
        }
        // When nobody has the command's side any more, this is EIO: the end.
        self.terminal.read(buffer)
    }
}
