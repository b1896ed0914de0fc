//! The process that makes a template in the background, for the next start.

use std::{fs, process::ExitCode};

use anyhow::{Context, Result};
use casemate_config::Config;
use casemate_linux::{descriptor, priority, view::View};
use casemate_sandbox::template::{
    Made, Store,
    background::{CONFIG_FD, VIEW_FDS},
};

use super::template;
use crate::log;

/// # Errors
/// When there is no template afterwards; the store has the reason, too.
pub fn run() -> Result<ExitCode> {
    let config = fs::File::from(descriptor::inherited(CONFIG_FD).context("configuration")?);
    let config: Config = serde_json::from_reader(config).context("configuration")?;
    let [namespace, root] = VIEW_FDS.map(descriptor::inherited);
    let view = View::from_descriptors([namespace.context("view")?, root.context("view")?]);
    view.enter().context("the host's files")?;
    // Somebody else's start is more urgent; that it is not is no reason to give up.
    if let Err(error) = priority::lower() {
        tracing::warn!(%error, "made with the priority of everybody");
    }
    let made = template::make(&config);
    match &made {
        Ok(Made::New(header, pruned)) => {
            tracing::info!(template = %header.key, ms = header.took_ms, trial_ms = header.trial_ms, "made and tried");
            for gone in pruned {
                tracing::info!(template = %gone.key, reason = %gone.reason, "removed");
            }
        }
        Ok(Made::There(header)) => tracing::info!(template = %header.key, "is there already"),
        Ok(Made::Elsewhere) => tracing::info!("somebody else is making it"),
        Err(failure) => {
            tracing::warn!("{}", log::one_line(&failure.error));
            if let (Some(key), false) = (&failure.key, failure.is_kill) {
                let store = Store::at(&config.template.directory);
                store.note_failure(key, &log::one_line(&failure.error))?;
            }
        }
    }
    Ok(ExitCode::from(u8::from(made.is_err())))
}
