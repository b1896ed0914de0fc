//! `spec`: a config.json to start from.

use std::{fs::OpenOptions, io, process::ExitCode};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec as OciSpec;

use crate::arguments::Spec;

/// # Errors
/// When there is a config.json already, or it cannot be written.
pub fn run(arguments: &Spec) -> Result<ExitCode> {
    let path = arguments.bundle.join("config.json");
    let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{} exists; remove it first", path.display())
        }
        other => other.with_context(|| path.display().to_string())?,
    };
    serde_json::to_writer_pretty(file, &template()?).with_context(|| path.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// The OCI default, with a terminal and a host name as runc's has.
fn template() -> Result<serde_json::Value> {
    let mut spec = serde_json::to_value(OciSpec::default())?;
    spec["process"]["terminal"] = true.into();
    spec["hostname"] = "casemate".into();
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_can_be_run() {
        let json = serde_json::to_vec(&template().unwrap()).unwrap();
        let spec: OciSpec = serde_json::from_slice(&json).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["sh"]);
        assert_eq!(process.terminal(), Some(true));
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let arguments = Spec {
            bundle: directory.path().to_owned(),
        };
        run(&arguments).unwrap();
        assert!(run(&arguments).unwrap_err().to_string().contains("exists"));
    }
}
