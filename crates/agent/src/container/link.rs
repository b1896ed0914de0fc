//! The line between the agent and a child process until that has executed its
//! program: a socket pair that keeps messages apart and that exec closes.
//!
//! ```text
//! agent                                child
//!   ── Proceed ──────────────────────►   registered, id maps are written
//!   ◄───────────── Ready | Failed ────   waits before exec ("created")
//!   ── Start ────────────────────────►
//!   ◄───────── end of file | Failed ──   the program runs, or why it does not
//! ```

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use casemate_linux::{
    reactor::register,
    socket::{receive_with_descriptors, send_with_descriptors},
};
use casemate_protocol::agent::{CreateContainerResponse, Span};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use protobuf::Message;
use tokio::io::{Interest, unix::AsyncFd};
use ttrpc::Code;

use crate::error::{Doing, Error, Result};

/// Longest message; a child's error text is cut to fit.
const MAX_MESSAGE: usize = 16 << 10;
const MAX_TEXT: usize = 8 << 10;

/// First byte of a message.
const PROCEED: u8 = b'p';
const START: u8 = b's';
const READY: u8 = b'r';
const FAILED: u8 = b'f';

/// A fresh line: the agent's end and the child's.
pub(crate) fn pair() -> Result<(Link, ChildLink)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .doing(|| "make a socket pair".into())?;
    Ok((Link::new(ours)?, ChildLink(theirs)))
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct Link(AsyncFd<OwnedFd>);

/// What a child that is ready hands over.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) spans: Vec<Span>,
    /// Master of its terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
}

impl Link {
    fn new(socket: OwnedFd) -> Result<Self> {
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&socket, flags).doing(|| "set O_NONBLOCK".into())?;
        let socket = register(socket, Interest::READABLE).doing(|| "watch a socket".into())?;
        Ok(Self(socket))
    }

    /// Lets the child set itself up.
    pub(crate) fn proceed(&self) -> Result<()> {
        self.send(PROCEED)
    }

    fn send(&self, word: u8) -> Result<()> {
        // One byte always fits into the buffer of a fresh socket.
        send(self.0.as_raw_fd(), &[word], MsgFlags::MSG_NOSIGNAL)
            .map(drop)
            .doing(|| "tell the process to go on".into())
    }

    /// Waits until the child could execute its program. `None` when it has
    /// ended without a word.
    pub(crate) async fn ready(&self) -> Result<Option<Ready>> {
        let (message, mut descriptors) = self.receive().await?;
        match message.split_first() {
            None => Ok(None),
            Some((&READY, body)) => {
                let report = CreateContainerResponse::parse_from_bytes(body)
                    .map_err(|error| Error::ChildLost(error.to_string()))?;
                Ok(Some(Ready {
                    spans: report.spans,
                    terminal: descriptors.pop(),
                }))
            }
            Some((_, body)) => Err(failure(body)),
        }
    }

    /// Has the child execute its program and waits until it has.
    pub(crate) async fn start(&self) -> Result<()> {
        self.send(START)?;
        let (message, _) = self.receive().await?;
        match message.split_first() {
            None => Ok(()),
            Some((_, body)) => Err(failure(body)),
        }
    }

    /// For a go-between that has made the process in its stead: its id and a
    /// pidfd.
    pub(crate) async fn made(&self) -> Result<Option<(u32, OwnedFd)>> {
        let (message, mut descriptors) = self.receive().await?;
        match (message.split_first(), descriptors.pop()) {
            (None, _) => Ok(None),
            (Some((&READY, body)), Some(pidfd)) => {
                let pid = body.try_into().map(u32::from_ne_bytes);
                let pid = pid.map_err(|_| Error::ChildLost("without its id".into()))?;
                Ok(Some((pid, pidfd)))
            }
            (Some((_, body)), _) => Err(failure(body)),
        }
    }

    /// The next message; an empty one when the other end is closed.
    async fn receive(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let received = self
            .0
            .async_io(Interest::READABLE, |socket| {
                receive_with_descriptors(socket.as_fd(), &mut bytes)
            })
            .await;
        let (count, descriptors) = match received {
            // It was killed before it had read what we sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (0, Vec::new()),
            other => other.doing(|| "hear from the process".into())?,
        };
        bytes.truncate(count);
        Ok((bytes, descriptors))
    }
}

fn failure(body: &[u8]) -> Error {
    let (code, text) = body.split_first().unwrap_or((&0, &[]));
    Error::Child {
        code: [
            Code::INTERNAL,
            Code::INVALID_ARGUMENT,
            Code::FAILED_PRECONDITION,
        ]
        .into_iter()
        .find(|known| *known as u8 == *code)
        .unwrap_or(Code::INTERNAL),
        text: String::from_utf8_lossy(text).into_owned(),
    }
}

/// The child's end. Used without tokio: the child has none.
#[derive(Debug)]
pub(crate) struct ChildLink(OwnedFd);

impl ChildLink {
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits for the agent's word to set up or to start. False: the agent has
    /// given this process up.
    pub(crate) fn told(&self) -> bool {
        let mut word = [0];
        loop {
            match recv(self.0.as_raw_fd(), &mut word, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => {}
                other => return matches!(other, Ok(1)),
            }
        }
    }

    /// Reports that the program could be executed now.
    pub(crate) fn ready(&self, spans: Vec<Span>, terminal: Option<BorrowedFd<'_>>) -> Result<()> {
        let report = CreateContainerResponse {
            spans,
            ..Default::default()
        };
        let mut message = vec![READY];
        report
            .write_to_vec(&mut message)
            .map_err(io::Error::other)
            .doing(|| "write the report".into())?;
        self.send(&message, terminal.as_slice())
    }

    /// Reports a process made by this go-between.
    pub(crate) fn made(&self, pid: u32, pidfd: BorrowedFd<'_>) -> Result<()> {
        let mut message = vec![READY];
        message.extend(pid.to_ne_bytes());
        self.send(&message, &[pidfd])
    }

    /// Reports why it cannot go on.
    pub(crate) fn failed(&self, error: &Error) {
        let text = error.to_string();
        let mut message = vec![FAILED, error.code() as u8];
        message.extend(text.bytes().take(MAX_TEXT));
        // If the agent is gone, nobody is left to tell.
        let _ = self.send(&message, &[]);
    }

    fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        send_with_descriptors(self.0.as_fd(), message, descriptors)
            .map(drop)
            .doing(|| "report to the agent".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::span;

    #[tokio::test]
    async fn a_ready_child_hands_over_its_terminal() {
        let (link, child) = pair().unwrap();
        link.proceed().unwrap();
        assert!(child.told());
        let file = std::fs::File::open("/dev/null").unwrap();
        child
            .ready(vec![span("mounts", 1, 2)], Some(file.as_fd()))
            .unwrap();
        let ready = link.ready().await.unwrap().unwrap();
        assert_eq!(ready.spans, [span("mounts", 1, 2)]);
        assert!(ready.terminal.is_some());
        drop(link);
        assert!(!child.told());
    }

    #[tokio::test]
    async fn a_failure_keeps_its_code_and_text() {
        let (link, child) = pair().unwrap();
        child.failed(&Error::Program("exec: \"x\": y".into()));
        let error = link.ready().await.unwrap_err();
        assert_eq!(error.code(), Code::INVALID_ARGUMENT);
        assert_eq!(
            error.to_string(),
            "unable to start container process: exec: \"x\": y"
        );
    }

    #[tokio::test]
    async fn silence_after_start_means_that_the_program_runs() {
        let (link, child) = pair().unwrap();
        let started = async { link.start().await };
        let exec = async {
            tokio::task::yield_now().await;
            drop(child);
        };
        let (started, ()) = tokio::join!(started, exec);
        started.unwrap();
    }
}
