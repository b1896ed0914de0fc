//! The two ends of a process's standard streams before anyone is attached.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use casemate_protocol::agent::Streams;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};

use crate::error::{Doing, Result};

/// What the process gets as 0, 1 and 2.
#[derive(Debug)]
pub(crate) enum ProcessEnds {
    /// Pipes, or the null device for what nobody wants.
    Files([OwnedFd; 3]),
    /// A terminal, which the process makes in the container itself.
    Terminal,
}

impl ProcessEnds {
    /// The descriptors that the child has to keep.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Files(files) => files.iter().map(AsFd::as_fd).collect(),
            Self::Terminal => Vec::new(),
        }
    }
}

/// The agent's ends, nonblocking.
#[derive(Debug, Default)]
pub(crate) struct AgentEnds {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Pipes for the streams that the host will attach.
pub(crate) fn pipes(wanted: &Streams) -> Result<(ProcessEnds, AgentEnds)> {
    let mut ours = AgentEnds::default();
    let stdin = match wanted.stdin {
        true => {
            let (reader, writer) = pipe()?;
            ours.stdin = Some(nonblocking(writer)?);
            reader
        }
        false => null()?,
    };
    let stdout = output(wanted.stdout, &mut ours.stdout)?;
    let stderr = output(wanted.stderr, &mut ours.stderr)?;
    Ok((ProcessEnds::Files([stdin, stdout, stderr]), ours))
}

/// The agent's ends of a terminal. What nobody wants is not read, as with runc
/// when the client leaves the console alone.
pub(crate) fn terminal(master: &OwnedFd, wanted: &Streams) -> Result<AgentEnds> {
    let end = |wanted: bool| -> Result<Option<OwnedFd>> {
        if !wanted {
            return Ok(None);
        }
        let copy = master.try_clone().doing(|| "copy a descriptor".into())?;
        nonblocking(copy).map(Some)
    };
    Ok(AgentEnds {
        stdin: end(wanted.stdin)?,
        stdout: end(wanted.stdout)?,
        stderr: None,
    })
}

fn output(wanted: bool, ours: &mut Option<OwnedFd>) -> Result<OwnedFd> {
    if !wanted {
        return null();
    }
    let (reader, writer) = pipe()?;
    *ours = Some(nonblocking(reader)?);
    Ok(writer)
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).doing(|| "make a pipe".into())
}

fn null() -> Result<OwnedFd> {
    let null = File::options().read(true).write(true).open("/dev/null");
    Ok(null.doing(|| "open /dev/null".into())?.into())
}

fn nonblocking(end: OwnedFd) -> Result<OwnedFd> {
    fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing(|| "set O_NONBLOCK".into())?;
    Ok(end)
}
