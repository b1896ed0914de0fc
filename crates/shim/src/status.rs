//! Failures of a sandbox as ttrpc statuses.

use casemate_sandbox::{Error, Kind};
use ttrpc::Code;

/// The one table from kinds of failure to ttrpc codes.
pub(crate) fn from_error(error: Error) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::Invalid => Code::INVALID_ARGUMENT,
        Kind::Precondition => Code::FAILED_PRECONDITION,
        Kind::Deadline => Code::DEADLINE_EXCEEDED,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::Internal => Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error))
}

/// A request that is wrong in itself.
pub(crate) fn invalid(text: impl std::fmt::Display) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INVALID_ARGUMENT, text))
}

/// An answer that cannot be written.
pub(crate) fn internal(text: impl std::fmt::Display) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, text))
}
