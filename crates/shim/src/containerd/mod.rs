//! containerd's way to a sandbox (shim v2): the short-lived command that it
//! runs for each container, and what the monitor does for it beyond the Task
//! service.
//!
//! ```text
//! containerd ── start ──► claims directories, makes the monitor, prints its address
//!            ══ ttrpc ══► monitor: Task service; streams are FIFOs that containerd made
//!            ◄═ ttrpc ═══ events
//!            ── delete ─► undoes what a killed monitor has left
//! ```
//!
//! The first container of a pod (or one alone) brings its sandbox; `start` of
//! the others answers with the same address.

mod arguments;
mod bundle;
mod delete;
mod door;
mod events;
mod io;
mod logger;
mod options;
mod place;
mod pod;
mod start;

use std::{
    ffi::OsString,
    io::{Read, Write},
};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::protobuf::{Message, well_known_types::any::Any};

pub use delete::ForceDelete;
pub(crate) use door::{Arrival, Refusal, What};
pub use door::{Door, Settings};
pub(crate) use io::Addresses;
pub use pod::Pod;

use arguments::{Action, Arguments};

/// What the file name of the command begins with; what follows names the
/// runtime for containerd.
const PROGRAM: &str = "containerd-shim-casemate";

/// The name of the runtime.
const RUNTIME: &str = "io.containerd.casemate.v2";

/// How containerd calls the runtime spec's features.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Most bytes that containerd sends on standard input.
const MAX_INPUT: u64 = 1 << 20;

/// Whether this process was called as containerd's shim: by its file name.
pub fn is_called(program: Option<&OsString>) -> bool {
    let name = program.and_then(|path| std::path::Path::new(path).file_name());
    name.is_some_and(|name| name.to_string_lossy().starts_with(PROGRAM))
}

/// What the command line of the runtime does for the shim.
pub struct Commands<'a> {
    /// What `-info` tells of the runtime, as the runtime spec's features.md has
    /// it.
    pub features: &'a [u8],
    /// `delete --force`.
    pub force_delete: ForceDelete<'a>,
}

/// Does what the shim's command line says.
///
/// # Errors
/// What containerd shows its client.
pub fn main(arguments: impl Iterator<Item = OsString>, commands: &Commands<'_>) -> Result<()> {
    let arguments = Arguments::parse(arguments)?;
    let bytes = run(&arguments, commands)?;
    let mut out = std::io::stdout();
    let written = out.write_all(&bytes).and_then(|()| out.flush());
    if written.is_err() && arguments.action == Action::Start {
        // A containerd that was killed meanwhile will never ask for what was made.
        delete::run(&arguments, commands.force_delete)?;
    }
    written.context("standard output")
}

fn run(arguments: &Arguments, commands: &Commands<'_>) -> Result<Vec<u8>> {
    match arguments.action {
        Action::Version => Ok(version().into_bytes()),
        Action::Info => info(commands.features),
        Action::Start => start::run(arguments, &input()?),
        Action::Delete => delete::run(arguments, commands.force_delete),
    }
}

fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("{PROGRAM}-v2:\n  Version:  {version}\n  Runtime:  {RUNTIME}\n")
}

/// `-info`: what the runtime is and can do (containerd.types.RuntimeInfo).
fn info(features: &[u8]) -> Result<Vec<u8>> {
    use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
        .into(),
        features: Some(Any {
            type_url: FEATURES.to_owned(),
            value: features.to_vec(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    info.write_to_bytes().context("information")
}

/// What containerd says on standard input.
fn input() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut limited = std::io::stdin().lock().take(MAX_INPUT + 1);
    limited.read_to_end(&mut bytes).context("standard input")?;
    if bytes.len() as u64 > MAX_INPUT {
        bail!("standard input: more than {MAX_INPUT} bytes");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_is_called_by_its_name() {
        let called = |name: &str| is_called(Some(&name.into()));
        assert!(called("/usr/local/bin/containerd-shim-casemate-v2"));
        assert!(called("containerd-shim-casemate-v2"));
        assert!(!called("/usr/local/bin/casemate"));
        assert!(!is_called(None));
    }
}
