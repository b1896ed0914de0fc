//! Parts of a configuration that a container in a virtual machine cannot have
//! at all.

use oci_spec::runtime::{Linux, LinuxPersonalityDomain, Spec};

use super::Error;

/// Refuses what would change how the container runs, and warns of what would
/// not.
pub(super) fn check(spec: &Spec, linux: &Linux, warnings: &mut Vec<String>) -> Result<(), Error> {
    let refused = [
        (
            "linux.intelRdt",
            linux.intel_rdt().is_some(),
            "the host's cache allocation does not reach into a virtual machine",
        ),
        (
            "linux.memoryPolicy",
            linux.memory_policy().is_some(),
            "the host's memory nodes are not those of a virtual machine",
        ),
        (
            "linux.netDevices",
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|devices| !devices.is_empty()),
            "network devices of the host cannot be moved into a virtual machine",
        ),
        (
            "linux.timeOffsets",
            linux
                .time_offsets()
                .as_ref()
                .is_some_and(|offsets| !offsets.is_empty()),
            "clocks of a container cannot be offset yet",
        ),
        (
            "linux.personality",
            linux.personality().as_ref().is_some_and(|personality| {
                personality.domain() != LinuxPersonalityDomain::PerLinux
                    || personality
                        .flags()
                        .as_ref()
                        .is_some_and(|flags| !flags.is_empty())
            }),
            "only the domain LINUX without flags is known",
        ),
        (
            "vm",
            spec.vm().is_some(),
            "the virtual machine is chosen by Casemate's own configuration",
        ),
    ];
    if let Some((field, _, reason)) = refused.into_iter().find(|(_, given, _)| *given) {
        return Err(Error::unsupported(field, reason));
    }
    if let Some(label) = linux
        .mount_label()
        .as_deref()
        .filter(|label| !label.is_empty())
    {
        let reason = "has no effect: the guest has no SELinux";
        warnings.push(format!("linux.mountLabel: {label:?} {reason}"));
    }
    let foreign = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    for (platform, _) in foreign.iter().filter(|(_, given)| *given) {
        warnings.push(format!("{platform} has no effect: this is Linux"));
    }
    Ok(())
}
