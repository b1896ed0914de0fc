//! Stand-ins: the processes on the host whose pids classic clients watch.
//!
//! The command line makes the stand-in as its own child and hands the monitor,
//! over the *attach socket*, everything that belongs to the process it stands
//! for: one JSON line (an [`Announcement`]) with descriptors:
//!
//! ```text
//! [control] then, as announced, [stdin] [stdout] [stderr], with a container
//! also [mount namespace] [root]
//! ```
//!
//! `control` is one end of a stream socket, the stand-in has the other. To the
//! stand-in go four bytes of exit status, or the end of file when the monitor
//! is gone; from it come sizes of its terminal, or the end of file when it was
//! killed. Where nobody else wants to see a process of an exec, the command line
//! that waits for it stands for it itself, and says so by [`OUTLIVED`] once it
//! would not take the process along any more. A container's bundle means files as they are seen from the mount
//! namespace and the root of who creates it. The monitor answers an announcement with one byte when it has
//! everything.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use casemate_linux::{process::Child, socket, view::View};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

use crate::{
    container::LOST,
    identifier::{Id, InvalidId},
    key::Key,
    stdio::Stdio,
};

/// Name of the attach socket in the sandbox's directory.
pub const ATTACH_SOCKET: &str = "attach.sock";

/// Longest announcement, in bytes.
const MAX_ANNOUNCEMENT: usize = 2048;

/// What the monitor answers when it has everything.
const ACCEPTED: u8 = b'1';

/// In place of a size: what this stands for outlives it from now on.
pub const OUTLIVED: [u8; 4] = [0; 4];

/// The line that comes with the descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Id of the container.
    pub container: String,
    /// Id of the exec, absent for the container's init.
    pub exec: Option<String>,
    /// Process id of the stand-in on the host.
    pub pid: u32,
    /// It is the command line itself.
    pub is_caller: bool,
    /// Which streams have a descriptor: stdin, stdout, stderr.
    pub streams: [bool; 3],
}

/// A stand-in, and the streams of the process it stands for.
#[derive(Debug)]
pub struct Attachment {
    /// For which process.
    pub key: Key,
    /// The stand-in.
    pub stand_in: StandIn,
    /// The client's ends of the streams.
    pub stdio: Stdio,
    /// Size of its terminal, once the stand-in has reported it.
    pub size: Option<TerminalSize>,
    /// Where the paths of a container's bundle lead; none for an exec.
    pub view: Option<View>,
    /// The stand-in's process, when it is a child of this one.
    pub child: Option<Child>,
    /// Who brings it will delete its process; else an exec is forgotten when it
    /// has ended.
    pub kept: bool,
}

/// The monitor's hold on a stand-in.
#[derive(Debug)]
pub struct StandIn {
    pid: u32,
    is_caller: bool,
    control: UnixStream,
}

/// Size of a terminal as the stand-in reports it: columns and rows, two bytes
/// each, little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl TerminalSize {
    /// As it travels.
    pub fn to_bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.columns.to_le_bytes(), self.rows.to_le_bytes());
        [a, b, c, d]
    }

    /// As it arrives.
    pub fn from_bytes([a, b, c, d]: [u8; 4]) -> Self {
        Self {
            columns: u16::from_le_bytes([a, b]),
            rows: u16::from_le_bytes([c, d]),
        }
    }
}

/// Why an attachment was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket.
    #[error("attach socket: {0}")]
    Io(#[from] io::Error),
    /// The line.
    #[error("announcement of a stand-in: {0}")]
    Malformed(#[from] serde_json::Error),
    /// An id in it.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// Descriptors are missing or too many.
    #[error("a stand-in came with {0} descriptors instead of {1}")]
    Descriptors(usize, usize),
}

impl StandIn {
    /// The hold on the stand-in with this process id, whose control socket ends
    /// here.
    pub fn new(pid: u32, control: UnixStream) -> Self {
        Self {
            pid,
            is_caller: false,
            control,
        }
    }

    /// Process id on the host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it is a command line, which was there before and has a life of its
    /// own.
    pub fn is_caller(&self) -> bool {
        self.is_caller
    }

    /// A copy of the control socket, to read what the stand-in reports.
    ///
    /// # Errors
    /// EMFILE.
    pub fn reports(&self) -> io::Result<UnixStream> {
        self.control.try_clone()
    }

    /// Its mount namespace.
    ///
    /// # Errors
    /// ESRCH when it has ended: its id may be another process's by now.
    pub fn mounts(&self) -> io::Result<File> {
        let namespace = File::open(format!("/proc/{}/ns/mnt", self.pid))?;
        // It holds its end of the line until it ends. So if that is still open,
        // the id was its own when the file was opened.
        let mut line = [PollFd::new(self.control.as_fd(), PollFlags::POLLHUP)];
        match poll(&mut line, PollTimeout::ZERO)? {
            0 => Ok(namespace),
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Lets the stand-in end with this exit status.
    pub fn dismiss(mut self, status: u32) {
        // One that has been killed needs no telling.
        let _ = self.control.write_all(&status.to_le_bytes());
    }
}

/// Stand-in's side: the exit status that the monitor tells; when that is gone,
/// so is the process.
pub fn told_status(mut control: impl Read) -> u32 {
    let mut status = [0; 4];
    match control.read_exact(&mut status) {
        Ok(()) => u32::from_le_bytes(status),
        Err(_) => LOST,
    }
}

/// Command line's side: hands a stand-in over to the monitor and waits until it
/// has been taken.
///
/// # Errors
/// When no monitor answers.
pub fn announce(
    directory: &Path,
    announcement: &Announcement,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let mut connection = socket::connect(&directory.join(ATTACH_SOCKET))?;
    let line = serde_json::to_vec(announcement)?;
    socket::send_with_descriptors(connection.as_fd(), &line, descriptors)?;
    let mut answer = [0];
    connection.read_exact(&mut answer)?;
    match answer == [ACCEPTED] {
        true => Ok(()),
        false => Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
    }
}

/// Monitor's side: takes what came over a connection to the attach socket.
///
/// # Errors
/// For anything that is not an announcement with its descriptors.
pub async fn receive(connection: &tokio::net::UnixStream) -> Result<Attachment, Error> {
    let mut line = [0; MAX_ANNOUNCEMENT];
    // Readiness may be announced in vain; async_io tries again then.
    let (count, descriptors) = connection
        .async_io(Interest::READABLE, || {
            socket::receive_with_descriptors(connection.as_fd(), &mut line)
        })
        .await?;
    parse(&line[..count], descriptors)
}

fn parse(line: &[u8], descriptors: Vec<OwnedFd>) -> Result<Attachment, Error> {
    let announcement: Announcement = serde_json::from_slice(line)?;
    let key = Key {
        container: Id::new(&announcement.container)?,
        exec: announcement.exec.as_deref().map(Id::new).transpose()?,
    };
    let streams = announcement.streams.iter();
    let of_view = if key.exec.is_none() { 2 } else { 0 };
    let expected = 1 + streams.filter(|wanted| **wanted).count() + of_view;
    if descriptors.len() != expected {
        return Err(Error::Descriptors(descriptors.len(), expected));
    }
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().expect("counted above");
    let stand_in = StandIn {
        pid: announcement.pid,
        is_caller: announcement.is_caller,
        control: next().into(),
    };
    let [stdin, stdout, stderr] = announcement.streams.map(|wanted| wanted.then(&mut next));
    let view = (of_view > 0).then(|| View::from_descriptors([next(), next()]));
    Ok(Attachment {
        key,
        stand_in,
        stdio: Stdio {
            stdin,
            stdout,
            stderr,
        },
        size: None,
        view,
        child: None,
        kept: false,
    })
}

/// Monitor's side: tells the command line that all is well.
///
/// # Errors
/// When it has gone.
pub fn accept(connection: OwnedFd) -> io::Result<()> {
    UnixStream::from(connection).write_all(&[ACCEPTED])
}

#[cfg(test)]
mod tests {

    use super::*;

    fn announcement() -> Announcement {
        Announcement {
            container: "web".into(),
            exec: None,
            pid: 1,
            is_caller: false,
            streams: [false, true, false],
        }
    }

    fn on_runtime<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    }

    fn monitor_side(connection: &UnixStream) -> Result<Attachment, Error> {
        let connection = connection.try_clone().unwrap();
        connection.set_nonblocking(true).unwrap();
        on_runtime(async { receive(&tokio::net::UnixStream::from_std(connection).unwrap()).await })
    }

    #[test]
    fn a_stand_in_arrives_with_its_streams_and_leaves_with_its_status() {
        let directory = tempfile::tempdir().unwrap();
        let listener = socket::listen(&directory.path().join(ATTACH_SOCKET)).unwrap();
        let (control, ours) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let path = directory.path().to_owned();
        let client = std::thread::spawn(move || {
            let view = View::own().unwrap();
            let [namespace, root] = view.descriptors();
            let fds = [control.as_fd(), writer.as_fd(), namespace, root];
            announce(&path, &announcement(), &fds).unwrap();
        });
        let (connection, _) = listener.accept().unwrap();
        let attachment = monitor_side(&connection).unwrap();
        accept(connection.into()).unwrap();
        client.join().unwrap();
        assert!(attachment.stdio.stdin.is_none() && attachment.view.is_some());
        let mut stdout = std::fs::File::from(attachment.stdio.stdout.unwrap());
        stdout.write_all(b"out").unwrap();
        drop(stdout);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "out");
        attachment.stand_in.dismiss(7);
        assert_eq!(told_status(&ours), 7);
        assert_eq!(told_status(&ours), LOST);
    }

    #[test]
    fn missing_descriptors_and_garbage_are_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let line = serde_json::to_vec(&announcement()).unwrap();
        socket::send_with_descriptors(ours.as_fd(), &line, &[ours.as_fd()]).unwrap();
        assert!(matches!(
            monitor_side(&theirs),
            Err(Error::Descriptors(1, 4))
        ));
        socket::send_with_descriptors(ours.as_fd(), b"{", &[]).unwrap();
        assert!(matches!(monitor_side(&theirs), Err(Error::Malformed(_))));
    }
}
