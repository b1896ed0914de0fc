//! What is read of a bundle, or of an exec's process, before the sandbox reads
//! it whole: whom its stand-in stands for.

use std::{fs, path::Path};

use serde::Deserialize;

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    process: Process,
}

#[derive(Default, Deserialize)]
struct Process {
    #[serde(default)]
    args: Vec<String>,
}

/// The arguments of the bundle's process; none of one that cannot be read,
/// which its maker will refuse.
pub(super) fn command(bundle: &Path) -> Vec<String> {
    let json = fs::read(bundle.join("config.json")).unwrap_or_default();
    let spec: Spec = serde_json::from_slice(&json).unwrap_or_default();
    spec.process.args
}

/// The same of an exec (OCI process as JSON).
pub(super) fn command_of(process: &[u8]) -> Vec<String> {
    let process: Process = serde_json::from_slice(process).unwrap_or_default();
    process.args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found() {
        let folder = tempfile::tempdir().unwrap();
        assert!(command(folder.path()).is_empty());
        let spec = r#"{"process":{"args":["sleep","1"],"cwd":"/"}}"#;
        fs::write(folder.path().join("config.json"), spec).unwrap();
        assert_eq!(command(folder.path()), ["sleep", "1"]);
        assert_eq!(command_of(br#"{"args":["ls"]}"#), ["ls"]);
        assert!(command_of(b"[").is_empty());
    }
}
