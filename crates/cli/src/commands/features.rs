//! `features`: what this runtime can do (runtime spec, features.md).

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

/// # Errors
/// When standard output is closed.
pub fn run() -> Result<ExitCode> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
        "mountOptions": casemate_sandbox::spec::MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": casemate_sandbox::spec::capability_names(),
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": false,
                "systemdUser": false,
                "rdma": false,
            },
            "seccomp": {
                "enabled": true,
                "actions": casemate_sandbox::spec::SECCOMP_ACTIONS,
                "operators": casemate_sandbox::spec::SECCOMP_OPERATORS,
                "archs": casemate_sandbox::spec::SECCOMP_ARCHITECTURES,
                "knownFlags": casemate_sandbox::spec::SECCOMP_FLAGS,
                "supportedFlags": casemate_sandbox::spec::SECCOMP_FLAGS,
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
        },
        "potentiallyUnsafeConfigAnnotations": [],
    });
    println!("{}", serde_json::to_string_pretty(&features)?);
    Ok(ExitCode::SUCCESS)
}
