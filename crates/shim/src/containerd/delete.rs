//! `delete`: containerd is done with a container, or its monitor was killed.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use casemate_sandbox::{Id, LOST, layout, state::State};
use containerd_shim_protos::{
    api::DeleteResponse,
    protobuf::{Message, MessageField, well_known_types::timestamp::Timestamp},
};

use super::{arguments::Arguments, bundle, place};

/// Removes what is left of a container, whatever its state: the command line
/// knows how.
pub type ForceDelete<'a> = &'a dyn Fn(&Path, &Id) -> Result<()>;

/// Answers with the end of the container as far as it is known (protobuf). With a
/// pod by the Sandbox API its members go: containerd does not ask for each then.
pub(super) fn run(arguments: &Arguments, force: ForceDelete<'_>) -> Result<Vec<u8>> {
    let id = Id::new(&arguments.id)?;
    let root = place::root(&arguments.address, &arguments.namespace);
    let directory = root.join(&id);
    let state = State::load(&directory).ok();
    let members = match arguments.bundle.as_deref().is_some_and(bundle::is_pod) {
        true => layout::others_in(&directory),
        false => Vec::new(),
    };
    force(&root, &id)?;
    for member in members {
        force(&root, &Id::new(&member)?)?;
    }
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
