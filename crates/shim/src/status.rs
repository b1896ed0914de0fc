//! Failures of a sandbox as ttrpc statuses, and times as containerd has them.

use casemate_sandbox::{Error, ExitStatus, Kind, claim};
use containerd_shim_protos::protobuf::{MessageField, well_known_types::timestamp::Timestamp};
use ttrpc::Code;

use crate::containerd::Refusal;

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

/// Why a process did not come in.
pub(crate) fn from_refusal(refusal: Refusal) -> ttrpc::Error {
    let code = match refusal {
        Refusal::Sandbox(error) => return from_error(error),
        Refusal::Claim(claim::Error::Exists(_)) => Code::ALREADY_EXISTS,
        Refusal::Streams(_) => Code::INVALID_ARGUMENT,
        Refusal::Claim(_) | Refusal::StandIn(_) | Refusal::Host(_) => Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, refusal))
}

/// A request that is wrong in itself.
pub(crate) fn invalid(text: impl std::fmt::Display) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INVALID_ARGUMENT, text))
}

/// An answer that cannot be written.
pub(crate) fn internal(text: impl std::fmt::Display) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, text))
}

/// What cannot be had, whatever the request.
pub(crate) fn unsupported(text: impl std::fmt::Display) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::UNIMPLEMENTED, text))
}

/// When something ended.
pub(crate) fn timestamp(exit: Option<ExitStatus>) -> MessageField<Timestamp> {
    MessageField::from_option(exit.map(|exit| Timestamp {
        seconds: (exit.at_ns / 1_000_000_000) as i64,
        nanos: (exit.at_ns % 1_000_000_000) as i32,
        ..Default::default()
    }))
}
