//! What a request to a sandbox may fail with, and the one table that maps it
//! to the codes of the Task API.

use std::sync::Arc;

use crate::{
    agent, cgroup, disk, hooks, identifier, ledger, machine, network, pod_files, policy, rootfs,
    settings, share, spec, state, stdio,
};

/// Why a request was not fulfilled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No such container or process.
    #[error("container does not exist")]
    NotFound,
    /// The id is taken.
    #[error("container with given ID already exists")]
    AlreadyExists,
    /// Not now.
    #[error(transparent)]
    Refused(#[from] policy::Refusal),
    /// The bundle's configuration.
    #[error("{0}")]
    Spec(Arc<spec::Error>),
    /// The annotations of a pod.
    #[error("{0}")]
    Settings(Arc<settings::Error>),
    /// The bundle itself.
    #[error("{0}")]
    Bundle(Arc<str>),
    /// An id.
    #[error(transparent)]
    Id(#[from] identifier::InvalidId),
    /// The machine did not come up.
    #[error("{0}")]
    Machine(Arc<machine::Error>),
    /// The machine has ended.
    #[error("the virtual machine has ended: {0}")]
    Down(Arc<str>),
    /// The agent's answer.
    #[error(transparent)]
    Agent(#[from] agent::Error),
    /// The network.
    #[error("{0}")]
    Network(Arc<network::Error>),
    /// A hook.
    #[error("{0}")]
    Hook(Arc<hooks::Error>),
    /// Something on the host.
    #[error("{0}")]
    Host(Arc<str>),
    /// The monitor is ending.
    #[error("the sandbox is being removed")]
    Closing,
}

/// The kinds of failure that clients tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What is named does not exist.
    NotFound,
    /// What should be made exists.
    AlreadyExists,
    /// The request makes no sense, whatever the state.
    Invalid,
    /// The request makes no sense in this state.
    Precondition,
    /// It took too long.
    Deadline,
    /// The sandbox is gone.
    Unavailable,
    /// Anything else.
    Internal,
}

impl Error {
    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        use ttrpc::Code;
        match self {
            Self::NotFound => Kind::NotFound,
            Self::AlreadyExists => Kind::AlreadyExists,
            Self::Refused(_) => Kind::Precondition,
            Self::Spec(_) | Self::Bundle(_) | Self::Settings(_) | Self::Id(_) => Kind::Invalid,
            Self::Agent(agent::Error::Timeout { .. }) => Kind::Deadline,
            Self::Agent(agent::Error::Refused { code, .. }) => match code {
                Code::NOT_FOUND => Kind::NotFound,
                Code::ALREADY_EXISTS => Kind::AlreadyExists,
                Code::INVALID_ARGUMENT => Kind::Invalid,
                Code::FAILED_PRECONDITION => Kind::Precondition,
                _ => Kind::Internal,
            },
            Self::Down(_) | Self::Closing => Kind::Unavailable,
            Self::Network(error) => match error.as_ref() {
                network::Error::Refused { .. }
                | network::Error::Slots { .. }
                | network::Error::Taken { .. } => Kind::Precondition,
                _ => Kind::Internal,
            },
            Self::Machine(_) | Self::Agent(_) | Self::Hook(_) | Self::Host(_) => Kind::Internal,
        }
    }
}

impl From<spec::Error> for Error {
    fn from(error: spec::Error) -> Self {
        Self::Spec(Arc::new(error))
    }
}

impl From<settings::Error> for Error {
    fn from(error: settings::Error) -> Self {
        Self::Settings(Arc::new(error))
    }
}

impl From<machine::Error> for Error {
    fn from(error: machine::Error) -> Self {
        Self::Machine(Arc::new(error))
    }
}

impl From<network::Error> for Error {
    fn from(error: network::Error) -> Self {
        Self::Network(Arc::new(error))
    }
}

impl From<hooks::Error> for Error {
    fn from(error: hooks::Error) -> Self {
        Self::Hook(Arc::new(error))
    }
}

/// Failures on the host carry their whole line already.
macro_rules! on_the_host {
    ($($type:ty),*) => {$(
        impl From<$type> for Error {
            fn from(error: $type) -> Self {
                Self::Host(error.to_string().into())
            }
        }
    )*};
}

on_the_host!(
    cgroup::Error,
    disk::Error,
    ledger::Error,
    pod_files::Error,
    rootfs::Error,
    share::Error,
    state::Error,
    stdio::Error
);
