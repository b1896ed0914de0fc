//! `delete`: containerd is done with a container, or its monitor was killed.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use casemate_sandbox::{Id, LOST, state::State};
use containerd_shim_protos::{
    api::DeleteResponse,
    protobuf::{Message, MessageField, well_known_types::timestamp::Timestamp},
};

use super::{arguments::Arguments, place};

/// Removes what is left of a container, whatever its state: the command line
/// knows how.
pub type ForceDelete<'a> = &'a dyn Fn(&Path, &Id) -> Result<()>;

/// Answers with the end of the container as far as it is known (protobuf).
pub(super) fn run(arguments: &Arguments, force: ForceDelete<'_>) -> Result<Vec<u8>> {
    let id = Id::new(&arguments.id)?;
    let root = place::root(&arguments.address, &arguments.namespace);
    let state = State::load(&root.join(&id)).ok();
    force(&root, &id)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let status = state.as_ref().and_then(|state| state.exit_status);
    let response = DeleteResponse {
        pid: state.map_or(0, |state| state.pid),
        exit_status: status.unwrap_or(LOST),
        exited_at: MessageField::some(Timestamp {
            seconds: now.as_secs() as i64,
            nanos: now.subsec_nanos() as i32,
            ..Default::default()
        }),
        ..Default::default()
    };
    response.write_to_bytes().context("answer")
}
