//! What is read of a bundle, or of an exec's process, before the sandbox reads
//! it whole: whether there is a container in it, and whom its stand-in stands
//! for.

use std::{fs, path::Path};

use serde::Deserialize;

#[derive(Default, Deserialize)]
struct Spec {
    process: Option<Process>,
}

#[derive(Default, Deserialize)]
struct Process {
    #[serde(default)]
    args: Vec<String>,
}

/// The folder that containerd makes in every bundle.
const ROOTFS: &str = "rootfs";

/// Whether the bundle is that of a sandbox which containerd will describe by
/// its Sandbox API: containerd made it, and there is no process in it. (Its CRI
/// plugin writes no config.json then, `ctr sandboxes` an empty one.)
pub(super) fn is_pod(bundle: &Path) -> bool {
    match fs::read(bundle.join("config.json")) {
        Ok(json) => serde_json::from_slice::<Spec>(&json).is_ok_and(|spec| spec.process.is_none()),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound && bundle.join(ROOTFS).is_dir(),
    }
}

/// The arguments of the bundle's process; none of one that cannot be read,
/// which its maker will refuse.
pub(super) fn command(bundle: &Path) -> Vec<String> {
    let json = fs::read(bundle.join("config.json")).unwrap_or_default();
    let spec: Spec = serde_json::from_slice(&json).unwrap_or_default();
    spec.process.unwrap_or_default().args
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

    #[test]
    fn a_pod_has_no_process() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_pod(folder.path()), "not a bundle of containerd's");
        fs::create_dir(folder.path().join(ROOTFS)).unwrap();
        assert!(is_pod(folder.path()));
        for (spec, expected) in [
            (r#"{"ociVersion":""}"#, true),
            (r#"{"process":{"cwd":"/"}}"#, false),
            ("{", false),
            ("[]", false),
        ] {
            fs::write(folder.path().join("config.json"), spec).unwrap();
            assert_eq!(is_pod(folder.path()), expected, "{spec}");
        }
    }
}
