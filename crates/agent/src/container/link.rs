//! The line between the agent and a child process until that has executed its
//! program: a pipe in each direction, which exec closes.
//!
//! ```text
//! agent                                child
//!   ── Proceed ──────────────────────►   registered, id maps are written
//!   ◄───────────── Ready | Failed ────   waits before exec ("created")
//!   ── Start ────────────────────────►
//!   ◄───────── end of file | Failed ──   the program runs, or why it does not
//! ```
//!
//! Neither side sends a second message before it has heard of the other, and
//! none is longer than what a pipe takes in one piece: a read is a message.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use casemate_linux::reactor::register;
use casemate_protocol::agent::{CreateContainerResponse, Span};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{pipe2, read},
};
use protobuf::Message;
use tokio::io::{Interest, unix::AsyncFd};
use ttrpc::Code;

use crate::error::{Doing, Error, Result};

/// Longest message (PIPE_BUF); a child's error text is cut to fit.
const MAX_MESSAGE: usize = 4096;

/// First byte of a message.
const PROCEED: u8 = b'p';
const START: u8 = b's';
const READY: u8 = b'r';
const FAILED: u8 = b'f';

/// Number of a descriptor that is not there.
const NONE: RawFd = -1;

/// A fresh line: the agent's end and the child's.
pub(crate) fn pair() -> Result<(Link, ChildLink)> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).doing(|| "make a pipe".into());
    let (reports, report) = pipe()?;
    let (words, tell) = pipe()?;
    fcntl(&reports, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing(|| "set O_NONBLOCK".into())?;
    let link = Link {
        reports: register(reports, Interest::READABLE).doing(|| "watch a pipe".into())?,
        tell: tell.into(),
    };
    let child = ChildLink {
        words: words.into(),
        report: report.into(),
    };
    Ok((link, child))
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct Link {
    reports: AsyncFd<OwnedFd>,
    tell: File,
}

/// What a child that is ready hands over.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) spans: Vec<Span>,
    /// The child's number of its terminal's master, if it has one.
    pub(crate) terminal: Option<RawFd>,
}

impl Link {
    /// Lets the child set itself up.
    pub(crate) fn proceed(&self) -> Result<()> {
        self.tell(PROCEED)
    }

    fn tell(&self, word: u8) -> Result<()> {
        (&self.tell)
            .write_all(&[word])
            .doing(|| "tell the process to go on".into())
    }

    /// Waits until the child could execute its program. `None` when it has
    /// ended without a word.
    pub(crate) async fn ready(&self) -> Result<Option<Ready>> {
        let Some((number, body)) = self.report().await? else {
            return Ok(None);
        };
        let report = CreateContainerResponse::parse_from_bytes(&body)
            .map_err(|error| Error::ChildLost(error.to_string()))?;
        Ok(Some(Ready {
            spans: report.spans,
            terminal: (number != NONE).then_some(number),
        }))
    }

    /// For a go-between that has made the process in its stead: the id of
    /// that.
    pub(crate) async fn made(&self) -> Result<Option<u32>> {
        let report = self.report().await?;
        Ok(report.map(|(number, _)| number as u32))
    }

    /// Has the child execute its program and waits until it has.
    pub(crate) async fn start(&self) -> Result<()> {
        self.tell(START)?;
        self.report().await.map(drop)
    }

    /// The next report, a number and more; `None` when the other end is
    /// closed.
    async fn report(&self) -> Result<Option<(RawFd, Vec<u8>)>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let count = self
            .reports
            .async_io(Interest::READABLE, |pipe| Ok(read(pipe, &mut bytes)?))
            .await
            .doing(|| "hear from the process".into())?;
        let message = &bytes[..count];
        match message.split_first() {
            None => Ok(None),
            Some((&READY, rest)) => match rest.split_first_chunk() {
                Some((number, body)) => Ok(Some((RawFd::from_ne_bytes(*number), body.to_owned()))),
                None => Err(Error::ChildLost("without its report".into())),
            },
            Some((_, body)) => Err(failure(body)),
        }
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
pub(crate) struct ChildLink {
    words: File,
    report: File,
}

impl ChildLink {
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.words.as_fd(), self.report.as_fd()]
    }

    /// Waits for the agent's word to set up or to start. False: the agent has
    /// given this process up.
    pub(crate) fn told(&self) -> bool {
        (&self.words).read_exact(&mut [0]).is_ok()
    }

    /// Reports that the program could be executed now.
    pub(crate) fn ready(&self, spans: Vec<Span>, terminal: Option<&OwnedFd>) -> Result<()> {
        let report = CreateContainerResponse {
            spans,
            ..Default::default()
        };
        let body = report
            .write_to_bytes()
            .map_err(io::Error::other)
            .doing(|| "write the report".into())?;
        self.report(terminal.map_or(NONE, AsRawFd::as_raw_fd), &body)
    }

    /// Reports a process made by this go-between.
    pub(crate) fn made(&self, pid: u32) -> Result<()> {
        self.report(pid as RawFd, &[])
    }

    fn report(&self, number: RawFd, body: &[u8]) -> Result<()> {
        let mut message = vec![READY];
        message.extend(number.to_ne_bytes());
        message.extend(body);
        self.send(&message).doing(|| "report to the agent".into())
    }

    /// Reports why it cannot go on.
    pub(crate) fn failed(&self, error: &Error) {
        let text = error.to_string();
        let mut message = vec![FAILED, error.code() as u8];
        message.extend(text.bytes().take(MAX_MESSAGE - message.len()));
        // If the agent is gone, nobody is left to tell.
        let _ = self.send(&message);
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        if message.len() > MAX_MESSAGE {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        (&self.report).write_all(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::span;

    #[tokio::test]
    async fn a_ready_child_names_its_terminal() {
        let (link, child) = pair().unwrap();
        link.proceed().unwrap();
        assert!(child.told());
        let file = OwnedFd::from(File::open("/dev/null").unwrap());
        let spans = vec![span("mounts", 1, 2)];
        child.ready(spans.clone(), Some(&file)).unwrap();
        let ready = link.ready().await.unwrap().unwrap();
        assert_eq!(ready.spans, spans);
        assert_eq!(ready.terminal, Some(file.as_raw_fd()));
        child.ready(Vec::new(), None).unwrap();
        assert_eq!(link.ready().await.unwrap().unwrap().terminal, None);
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
        child.failed(&Error::Program("x".repeat(10_000)));
        let error = link.ready().await.unwrap_err();
        assert_eq!(error.to_string().len(), MAX_MESSAGE - 2);
    }

    #[tokio::test]
    async fn silence_after_start_means_that_the_program_runs() {
        let (link, child) = pair().unwrap();
        let told = std::thread::spawn(move || child.told());
        link.start().await.unwrap();
        assert!(told.join().unwrap());
    }

    #[tokio::test]
    async fn a_child_that_is_gone_has_nothing_to_say() {
        let (link, child) = pair().unwrap();
        drop(child);
        assert!(link.ready().await.unwrap().is_none());
        assert!(link.proceed().is_err());
    }
}
