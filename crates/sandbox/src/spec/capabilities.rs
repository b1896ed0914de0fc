//! Capability sets as bit masks.

use casemate_protocol::agent;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// linux/capability.h, in the order of the numbers.
const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Every capability by its name, in the order of the numbers.
pub fn known_capabilities() -> impl Iterator<Item = String> {
    CAPABILITIES
        .iter()
        .map(|capability| format!("CAP_{capability}"))
}

/// The sets of a process. A capability can only be ambient while it is both
/// permitted and inheritable (capabilities(7)); one that is not is left out, as
/// runc's result is as well. `runc spec` writes such sets.
pub(super) fn masks(sets: &LinuxCapabilities, warnings: &mut Vec<String>) -> agent::Capabilities {
    let (permitted, inheritable) = (mask(sets.permitted()), mask(sets.inheritable()));
    let wished = mask(sets.ambient());
    let ambient = wished & permitted & inheritable;
    if ambient != wished {
        let what = "what is not both permitted and inheritable cannot be ambient";
        warnings.push(format!("process.capabilities.ambient: {what}"));
    }
    agent::Capabilities {
        bounding: mask(sets.bounding()),
        effective: mask(sets.effective()),
        permitted,
        inheritable,
        ambient,
        ..agent::Capabilities::default()
    }
}

fn mask(set: &Option<Capabilities>) -> u64 {
    let Some(set) = set else { return 0 };
    let numbered = CAPABILITIES.iter().enumerate();
    numbered
        .filter(|(_, capability)| set.contains(capability))
        .fold(0, |mask, (number, _)| mask | 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_linux() {
        let names: Vec<_> = known_capabilities().collect();
        // linux/capability.h
        for (number, name) in [
            (0, "CAP_CHOWN"),
            (7, "CAP_SETUID"),
            (12, "CAP_NET_ADMIN"),
            (21, "CAP_SYS_ADMIN"),
            (27, "CAP_MKNOD"),
            (31, "CAP_SETFCAP"),
            (34, "CAP_SYSLOG"),
            (40, "CAP_CHECKPOINT_RESTORE"),
        ] {
            assert_eq!(names[number], name);
        }
    }

    #[test]
    fn ambient_is_what_the_kernel_allows() {
        let sets: LinuxCapabilities = serde_json::from_str(
            r#"{"permitted": ["CAP_KILL", "CAP_CHOWN"],
                "inheritable": ["CAP_KILL"],
                "ambient": ["CAP_KILL", "CAP_CHOWN"]}"#,
        )
        .unwrap();
        let mut warnings = Vec::new();
        let masks = masks(&sets, &mut warnings);
        assert_eq!((masks.permitted, masks.ambient), (0b10_0001, 0b10_0000));
        assert_eq!(masks.bounding, 0);
        assert_eq!(warnings.len(), 1);
    }
}
