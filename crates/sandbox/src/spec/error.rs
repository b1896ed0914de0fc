//! Why a configuration is refused.

use std::io;

use super::HostPath;

/// Why a container or process cannot be run as its configuration asks. Each is
/// one line that begins with the place in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of the form that the runtime spec demands.
    #[error("not an OCI configuration: {0}")]
    Malformed(#[from] serde_json::Error),

    /// A required part is not there.
    #[error("{field}: missing")]
    Missing {
        /// Its place, such as `process.args`.
        field: &'static str,
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
        /// Why not, and what to do instead where there is something.
        reason: String,
    },

    /// The host's own namespace is asked for.
    #[error(
        "linux.namespaces: the host's {kind} namespace was asked for (no {kind:?} entry), \
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
