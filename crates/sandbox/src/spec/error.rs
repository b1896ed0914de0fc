//! Why a configuration is refused.

use std::io;

use super::HostPath;

/// Why a container or process cannot be run as its configuration asks. Each is
/// one line that begins with the place in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of the form that the runtime spec demands.
    #[error("not an OCI configuration: {reason}")]
    Malformed {
        /// What the parser says, on one line.
        reason: String,
    },

    /// A required part is not there.
    #[error("{field}: missing")]
    Missing {
        /// Its place, such as `process.args`.
        field: String,
    },

    /// A value breaks a rule of the runtime spec.
    #[error("{field}: {value:?} {problem}")]
    Invalid {
        /// Its place.
        field: String,
        /// As the configuration has it.
        value: String,
        /// What is wrong, as a predicate: "is not absolute".
        problem: &'static str,
    },

    /// A valid wish that a virtual machine cannot fulfil.
    #[error("{field}: {reason}")]
    Unsupported {
        /// Its place.
        field: String,
        /// Why not.
        reason: String,
    },

    /// The host's own namespace is asked for.
    #[error(
        "linux.namespaces: the container is to share the host's {kind} namespace, \
         but a virtual machine has its own"
    )]
    HostNamespace {
        /// As the runtime spec names it.
        kind: &'static str,
    },

    /// A host path cannot be used.
    #[error("{field}: {path}: {source}")]
    Path {
        /// Its place.
        field: String,
        /// On the host.
        path: HostPath,
        /// The reason.
        source: io::Error,
    },

    /// The seccomp profile cannot be compiled.
    #[error("linux.seccomp: {reason}")]
    Seccomp {
        /// What libseccomp refused.
        reason: String,
    },
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        // It may quote the configuration.
        let reason = error.to_string().replace(char::is_control, "?");
        Self::Malformed { reason }
    }
}

impl Error {
    pub(super) fn missing(field: impl Into<String>) -> Self {
        Self::Missing {
            field: field.into(),
        }
    }

    pub(super) fn invalid(
        field: impl Into<String>,
        value: impl ToString,
        problem: &'static str,
    ) -> Self {
        Self::Invalid {
            field: field.into(),
            value: value.to_string(),
            problem,
        }
    }

    pub(super) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            reason: reason.into(),
        }
    }
}
