//! What a sandbox's machine is made of.

use std::path::Path;

use casemate_config::Config;
use casemate_hypervisor::{BadParameter, BootSpec, ConsoleLog, Identity, Parameter, Size};

/// The guest's console output, for people.
pub const CONSOLE_LOG: &str = "console.log";

/// User and group ids of VMMs start here; the pid of who makes them is added, so
/// that no two running VMMs are the same user. Outside the ranges that login
/// tools and subordinate ids use by default.
const VMM_ID_BASE: u32 = 0x7000_0000;

/// Context ids of guests start here, in the same way: those below are the
/// host's.
const CID_BASE: u64 = 3;

/// A machine of this size, with logs in `directory` and nothing plugged yet.
///
/// # Errors
/// For a word of `guest.kernel_parameters` that is none.
pub(crate) fn boot_spec(
    config: &Config,
    size: Size,
    template: bool,
    directory: &Path,
) -> Result<BootSpec, BadParameter> {
    let id = VMM_ID_BASE + std::process::id();
    Ok(BootSpec {
        kernel: config.guest.kernel.clone(),
        initrd: config.guest.initrd.clone(),
        parameters: Parameter::words(&config.guest.kernel_parameters)?,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        hotplug_slots: config.machine.hotplug_slots,
        template,
        grown: None,
        counted: None,
        file_share: None,
        vsock: None,
        console: ConsoleLog {
            path: directory.join(CONSOLE_LOG),
            limit_bytes: u64::from(config.vmm.console_log_kib) << 10,
        },
        netns: None,
        identity: Identity { uid: id, gid: id },
    })
}

/// The context id of this process's guest.
pub(crate) fn guest_cid() -> u64 {
    CID_BASE + u64::from(std::process::id())
}
