//! Everything that can go wrong, and which ttrpc code the host sees.

use std::io;

use casemate_protocol::VersionMismatch;
use nix::errno::Errno;
use ttrpc::Code;

use crate::capacity::Capacity;

/// Result of the agent's own functions.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a request, or a step of it, has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A call before Hello.
    #[error("the first call on a connection must be Hello")]
    NotGreeted,
    #[error(transparent)]
    Version(#[from] VersionMismatch),
    #[error("the sandbox has been prepared already")]
    AlreadyPrepared,
    /// Nothing more is done for this connection.
    #[error("the machine is about to be saved as a template")]
    Template,
    /// What the host has announced did not come.
    #[error("the guest has {there} of {wanted} after {limit:?}")]
    NoCapacity {
        wanted: Capacity,
        there: Capacity,
        limit: std::time::Duration,
    },
    /// A file share that the host has announced did not come.
    #[error("file share {tag:?} did not appear within {limit:?}")]
    NoShare {
        tag: String,
        limit: std::time::Duration,
    },
    /// The VM is being shut down.
    #[error("the sandbox is shutting down")]
    Ending,
    /// Something in the request is not as it must be.
    #[error("{what}: {why}")]
    Invalid { what: String, why: String },
    /// More of something than the agent takes.
    #[error("{what}: {count} is over the limit of {most}")]
    Limit {
        what: &'static str,
        count: usize,
        most: usize,
    },
    /// A card that the host has announced did not come.
    #[error("the network card of interface {interface} did not appear within {limit:?}")]
    NoCard {
        interface: String,
        limit: std::time::Duration,
    },
    /// A disk that the host has announced did not come.
    #[error("disk {serial} did not appear within {limit:?}")]
    NoDisk {
        serial: String,
        limit: std::time::Duration,
    },
    #[error("container {0:?} does not exist")]
    NoContainer(String),
    #[error("container {container:?} has no process {exec:?}")]
    NoProcess { container: String, exec: String },
    #[error("container {0:?} exists already")]
    ContainerExists(String),
    #[error("container {container:?} has a process {exec:?} already")]
    ProcessExists { container: String, exec: String },
    /// The container is still being made, or being removed.
    #[error("container {0:?} is being made or removed")]
    Busy(String),
    #[error("container {0:?} is not running")]
    Stopped(String),
    #[error("the process was started already")]
    Started,
    #[error("the process is still running")]
    Running,
    /// A signal for a process that has ended; clients look for this text.
    #[error("process already finished")]
    Finished,
    #[error("the process has no terminal")]
    NoTerminal,
    /// The program cannot be executed. In runc's words: clients tell exit
    /// codes 126 and 127 from them.
    #[error("unable to start container process: {0}")]
    Program(String),
    /// A hook of the container has failed.
    #[error("{0}")]
    Hook(String),
    /// What a child process reported of itself.
    #[error("{text}")]
    Child { code: Code, text: String },
    /// A child process ended before it had reported anything.
    #[error("the process ended while it was being set up, {0}")]
    ChildLost(String),
    /// The kernel refused something.
    #[error("{doing}: {}", reason(.source))]
    System { doing: String, source: io::Error },
}

impl Error {
    /// For a value in a request that cannot be accepted.
    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            what: what.into(),
            why: why.into(),
        }
    }

    /// The one table from errors to ttrpc codes.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) | Self::NoProcess { .. } | Self::Finished => Code::NOT_FOUND,
            Self::ContainerExists(_) | Self::ProcessExists { .. } => Code::ALREADY_EXISTS,
            Self::Invalid { .. } | Self::Limit { .. } | Self::Program(_) => Code::INVALID_ARGUMENT,
            Self::NotGreeted
            | Self::Version(_)
            | Self::AlreadyPrepared
            | Self::Template
            | Self::Ending
            | Self::Busy(_)
            | Self::Stopped(_)
            | Self::Started
            | Self::Running
            | Self::Hook(_)
            | Self::NoTerminal => Code::FAILED_PRECONDITION,
            Self::Child { code, .. } => *code,
            Self::NoCard { .. }
            | Self::NoDisk { .. }
            | Self::NoShare { .. }
            | Self::NoCapacity { .. } => Code::DEADLINE_EXCEEDED,
            Self::ChildLost(_) | Self::System { .. } => Code::INTERNAL,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}

/// Names what was being done when a system call failed.
pub(crate) trait Doing<T> {
    /// `what` is a verb and its object, as runc words it: "mkdir /etc".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::System {
            doing: what(),
            source: source.into(),
        })
    }
}

/// The text of an errno as clients know it from runc: not capitalized, without
/// a number.
pub(crate) fn reason(error: &io::Error) -> String {
    let Some(number) = error.raw_os_error() else {
        return error.to_string();
    };
    let text = Errno::from_raw(number).desc();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_read_as_runc_prints_them() {
        let error = Err::<(), _>(Errno::ENOENT)
            .doing(|| "stat /foo".into())
            .unwrap_err();
        assert_eq!(error.to_string(), "stat /foo: no such file or directory");
        assert_eq!(error.code(), Code::INTERNAL);
        assert_eq!(
            reason(&io::Error::from_raw_os_error(libc::ENOEXEC)),
            "exec format error"
        );
    }
}
