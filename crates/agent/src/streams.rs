//! Bytes between the host's stream connections and the standard streams of
//! processes.
//!
//! A pump moves at most one buffer at a time and waits for whoever is slower,
//! so back-pressure reaches from a host that does not read to a process that
//! writes, and the other way round. A stream may be attached before the start
//! of its process or after its end; until then the kernel's pipe holds the
//! bytes.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use casemate_linux::{reactor::register, terminal};
use casemate_protocol::stream::Stream;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    unistd::{read, write},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    console::say,
    container::stdio::AgentEnds,
    reaper::End,
    transport::{Connection, Hangup},
};

/// Bytes moved at once: what a pipe holds.
const BUFFER: usize = 64 << 10;

/// With what the output of a process is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Complete {
    /// When nobody can write to it any more: the first process of a container.
    EndOfFile,
    /// Likewise for a terminal, which the kernel hangs up when the session
    /// leader ends, and we do when the host has gone: closing our end would not,
    /// for there is another copy, to change its size.
    Hangup,
    /// When the process has ended and the pipe is empty: one that was added.
    /// What it left in the background must not hold the stream.
    EndOfProcess,
}

impl Complete {
    /// The host wants no more of what comes from `file`.
    fn without_reader(self, file: &OwnedFd) -> io::Result<()> {
        match self {
            Self::Hangup => terminal::hang_up(file.as_fd()),
            Self::EndOfFile | Self::EndOfProcess => Ok(()),
        }
    }
}

/// The streams of one process that wait to be attached. About the lock, see
/// [`crate::reaper::Reaper`].
#[derive(Debug)]
pub(crate) struct Streams {
    ends: Mutex<AgentEnds>,
    complete: Complete,
    end: End,
}

impl Streams {
    pub(crate) fn new(ends: AgentEnds, complete: Complete, end: End) -> Self {
        Self {
            ends: Mutex::new(ends),
            complete,
            end,
        }
    }

    /// Takes a stream for a connection; each can be taken once.
    pub(crate) fn take(&self, stream: Stream) -> Option<Pump> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match stream {
            Stream::STDIN => &mut ends.stdin,
            Stream::STDOUT => &mut ends.stdout,
            Stream::STDERR => &mut ends.stderr,
        };
        Some(Pump {
            file: slot.take()?,
            inwards: stream == Stream::STDIN,
            complete: self.complete,
            end: self.end.clone(),
        })
    }
}

/// A stream that is about to be connected.
#[derive(Debug)]
pub(crate) struct Pump {
    file: OwnedFd,
    inwards: bool,
    complete: Complete,
    end: End,
}

impl Pump {
    /// Moves bytes until the stream is complete or one side is gone.
    pub(crate) async fn run(self, connection: Connection) {
        let result = match self.inwards {
            true => self.pump_in(&connection).await,
            false => self.pump_out(&connection).await,
        };
        if let Err(error) = result {
            say(format_args!("stream: {error}"));
        }
    }

    /// Host to process. Dropping the pipe's end is the process's end of file.
    async fn pump_in(mut self, connection: &Connection) -> io::Result<()> {
        let sink = register(self.file, Interest::WRITABLE)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let moved = async {
                let count = connection.receive(&mut buffer).await?;
                write_all(&sink, &buffer[..count]).await?;
                Ok::<_, io::Error>(count)
            };
            tokio::select! {
                moved = moved => if matches!(moved, Ok(0) | Err(_)) {
                    // The host has no more, or is gone, or nobody reads.
                    return Ok(());
                },
                _ = self.end.reached() => return Ok(()),
            }
        }
    }

    /// Process to host. Returning early drops the pipe's end, so that the
    /// process learns of it (EPIPE) as it would from a closed pipe.
    async fn pump_out(mut self, connection: &Connection) -> io::Result<()> {
        let source = register(self.file, Interest::READABLE)?;
        let hangup = connection.hangup()?;
        let ends_with_process = self.complete == Complete::EndOfProcess;
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = tokio::select! {
                biased;
                _ = self.end.reached(), if ends_with_process => {
                    if drain(&source, connection, &mut buffer).await.is_err() {
                        return Ok(());
                    }
                    break;
                }
                () = hangup.happened() => return self.complete.without_reader(source.get_ref()),
                // A terminal answers EIO when its last user is gone.
                count = read_some(&source, &mut buffer) => match count {
                    Ok(0) | Err(_) => break,
                    Ok(count) => count,
                },
            };
            if connection.send_all(&buffer[..count]).await.is_err() {
                return self.complete.without_reader(source.get_ref());
            }
        }
        drop(source);
        finish(connection, hangup).await;
        Ok(())
    }
}

/// Tells the host that this was all and stays until it has gone: closing at
/// once could overtake what is under way.
async fn finish(connection: &Connection, hangup: Hangup) {
    if connection.finish().is_ok() {
        tokio::select! {
            () = connection.closed() => {}
            () = hangup.happened() => {}
        }
    }
}

/// Sends what the pipe holds now, and no more than it can hold: somebody may
/// go on writing.
async fn drain(
    source: &AsyncFd<OwnedFd>,
    connection: &Connection,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut left = fcntl(source.get_ref(), FcntlArg::F_GETPIPE_SZ)? as usize;
    while left > 0 {
        let most = left.min(buffer.len());
        match read(source.get_ref(), &mut buffer[..most]) {
            Ok(0) | Err(Errno::EAGAIN) => break,
            Ok(count) => {
                connection.send_all(&buffer[..count]).await?;
                left -= count;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

async fn read_some(source: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    source
        .async_io(Interest::READABLE, |file| Ok(read(file, buffer)?))
        .await
}

async fn write_all(sink: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = sink
            .async_io(Interest::WRITABLE, |file| Ok(write(file, bytes)?))
            .await?;
        bytes = &bytes[count..];
    }
    Ok(())
}
