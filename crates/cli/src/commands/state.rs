//! `state`: the container's state as the OCI runtime spec has it, with runc's
//! additions.

use std::process::ExitCode;

use anyhow::Result;
use casemate_sandbox::state::State;
use serde::Serialize;

use crate::arguments::{Container, Global};
use crate::client::Place;

/// What runc prints for `state` and `list --format json`.
#[derive(Debug, Serialize)]
pub struct Shown {
    #[serde(rename = "ociVersion")]
    oci_version: String,
    pub id: String,
    pub pid: u32,
    pub status: String,
    pub bundle: String,
    rootfs: String,
    pub created: String,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<String, String>,
    pub owner: String,
}

impl From<State> for Shown {
    fn from(state: State) -> Self {
        Self {
            oci_version: state.oci_version,
            id: state.id,
            pid: state.pid,
            status: state.status.to_string(),
            bundle: state.bundle.to_string_lossy().into_owned(),
            rootfs: state.rootfs.to_string_lossy().into_owned(),
            created: state.created,
            annotations: state.annotations,
            owner: state.owner,
        }
    }
}

/// # Errors
/// When there is no such container.
pub fn run(global: &Global, arguments: &Container) -> Result<ExitCode> {
    let state = Place::of(global, &arguments.id)?.state()?;
    println!("{}", serde_json::to_string_pretty(&Shown::from(state))?);
    Ok(ExitCode::SUCCESS)
}
