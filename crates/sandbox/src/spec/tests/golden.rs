//! Configurations that real clients wrote, and what becomes of them.
//!
//! `golden/NAME.json` is the configuration as the client wrote it, with the
//! paths of its storage shortened; `golden/NAME.txt` is what is expected.
//! `CASEMATE_WRITE_GENERATED=1` writes the expectations anew, to be read
//! before they are committed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use protobuf::text_format;

use super::fake_host::FakeHost;
use crate::spec::{Bundle, HostPath, Split, parse, split};

/// The folder of the configurations.
pub(super) fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/spec/tests/golden")
        .join(file)
}

/// Splits a configuration on the fake host.
pub(super) fn split_json(json: &[u8]) -> Result<Split, crate::spec::Error> {
    let directory = HostPath::new("/bundle").unwrap();
    let bundle = Bundle {
        container_id: "c1",
        directory: &directory,
    };
    split(&parse(json)?, bundle, &FakeHost)
}

fn check(name: &str) {
    let json = std::fs::read(golden(&format!("{name}.json"))).unwrap();
    let found = render(split_json(&json).unwrap());
    let file = golden(&format!("{name}.txt"));
    if std::env::var_os("CASEMATE_WRITE_GENERATED").is_some() {
        std::fs::write(&file, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == expected,
        "{} differs; found:\n{found}",
        file.display()
    );
}

/// The split as text that is the same every time and with every libseccomp.
fn render(mut split: Split) -> String {
    let process = split.guest.process.mut_or_insert_default();
    if let Some(seccomp) = process.seccomp.as_mut() {
        assert!(!seccomp.program.is_empty());
        seccomp.program = b"compiled".to_vec();
    }
    let cgroup = split.guest.cgroup.mut_or_insert_default();
    let settings: BTreeMap<_, _> = std::mem::take(&mut cgroup.settings).into_iter().collect();
    let sysctls: BTreeMap<_, _> = std::mem::take(&mut split.guest.sysctls)
        .into_iter()
        .collect();
    let mut text = String::from("# host\n");
    text.push_str(&serde_json::to_string_pretty(&split.host).unwrap());
    text.push_str("\n\n# guest\n");
    text.push_str(&text_format::print_to_string_pretty(&split.guest));
    write!(text, "\n# guest, cgroup settings\n{settings:#?}\n").unwrap();
    write!(text, "\n# guest, sysctls\n{sysctls:#?}\n").unwrap();
    text
}

/// The first container of a pod with limits: its own are not the pod's.
#[test]
fn containerd_pod() {
    check("containerd-pod");
}

#[test]
fn podman_run() {
    check("podman-run");
}

#[test]
fn podman_run_with_many_flags() {
    check("podman-flags");
}

#[test]
fn podman_run_privileged() {
    check("podman-privileged");
}

#[test]
fn podman_run_with_systemd() {
    check("podman-systemd");
}

#[test]
fn podman_run_with_a_user_namespace() {
    check("podman-userns");
}

#[test]
fn podman_run_with_host_resources() {
    check("podman-resources");
}

#[test]
fn containerd_pods_sandbox() {
    check("containerd-sandbox");
}

#[test]
fn containerd_pods_member() {
    check("containerd-member");
}

#[test]
fn runc_spec() {
    check("runc-spec");
}
