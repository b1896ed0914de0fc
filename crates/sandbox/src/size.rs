//! How large a machine a container gets, from the limits in its configuration;
//! the first container of a Kubernetes pod, from those of the pod.
//!
//! * **Processors**: as many as the CPU quota is worth, rounded up, and no more
//!   than the cpuset names; `machine.vcpus` without a quota.
//! * **Memory**: the container's limit and `machine.memory_mib` on top of it for
//!   the guest's kernel and agent; `machine.memory_mib` without a limit. Memory
//!   that the guest never touches costs the host next to nothing.
//!
//! Neither is more than the host has. The limits themselves hold inside the
//! guest, to the byte and the microsecond.

use casemate_config::Machine;
use nix::sys::sysinfo::sysinfo;
use oci_spec::runtime::{LinuxCpu, LinuxResources};

use crate::spec::CPU_PERIOD_US;

/// What the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSize {
    /// Processors that this process may use.
    pub processors: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl HostSize {
    /// Of this host.
    pub fn now() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            processors: processors as u32,
            memory_mib: sysinfo().map_or(u64::MAX, |info| info.ram_total() >> 20),
        }
    }
}

/// The machine for a sandbox whose first container has these limits.
pub fn machine(default: &Machine, resources: Option<&LinuxResources>, host: HostSize) -> Machine {
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let limit = resources
        .and_then(|resources| resources.memory().as_ref())
        .and_then(oci_spec::runtime::LinuxMemory::limit);
    Machine {
        vcpus: vcpus(default.vcpus, cpu, host.processors),
        memory_mib: memory_mib(default.memory_mib, limit, host.memory_mib),
        ..default.clone()
    }
}

fn vcpus(default: u32, cpu: Option<&LinuxCpu>, processors: u32) -> u32 {
    let Some(cpu) = cpu else { return default };
    let period = cpu
        .period()
        .filter(|period| *period > 0)
        .unwrap_or(CPU_PERIOD_US);
    let wanted = match cpu.quota() {
        Some(quota) if quota > 0 => (quota as u64).div_ceil(period).min(u64::from(u32::MAX)) as u32,
        _ => return default,
    };
    let named = cpu.cpus().as_deref().map_or(0, count);
    let most = if named == 0 {
        processors
    } else {
        named.min(processors)
    };
    wanted.clamp(1, most.max(1))
}

/// How many processors a list such as "0-3,8" names; 0 for what is none.
fn count(list: &str) -> u32 {
    let range = |part: &str| -> Option<u32> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    let parts = list.split(',').filter_map(range);
    parts.fold(0, u32::saturating_add)
}

fn memory_mib(default: u32, limit: Option<i64>, host: u64) -> u32 {
    let Some(limit) = limit.filter(|limit| *limit > 0) else {
        return default;
    };
    let wanted = (limit as u64).div_ceil(1 << 20) + u64::from(default);
    wanted
        .min(host.max(u64::from(default)))
        .min(u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use casemate_config::Config;
    use proptest::prelude::*;

    use super::*;

    const HOST: HostSize = HostSize {
        processors: 4,
        memory_mib: 8192,
    };

    fn size(json: &str) -> (u32, u32) {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let machine = machine(&Config::default().machine, Some(&resources), HOST);
        (machine.vcpus, machine.memory_mib)
    }

    #[test]
    fn limits_make_the_machine() {
        let cases = [
            ("{}", (1, 256)),
            (r#"{"cpu": {"quota": 50000, "period": 100000}}"#, (1, 256)),
            (r#"{"cpu": {"quota": 150000}}"#, (2, 256)),
            (r#"{"cpu": {"quota": 150000, "cpus": "3"}}"#, (1, 256)),
            (r#"{"cpu": {"quota": 900000, "cpus": "0-1,3"}}"#, (3, 256)),
            (r#"{"cpu": {"quota": 9000000}}"#, (4, 256)),
            (r#"{"cpu": {"quota": -1, "shares": 2}}"#, (1, 256)),
            (r#"{"memory": {"limit": 67108864}}"#, (1, 320)),
            (r#"{"memory": {"limit": 1}}"#, (1, 257)),
            (r#"{"memory": {"limit": -1}}"#, (1, 256)),
            (r#"{"memory": {"limit": 1099511627776}}"#, (1, 8192)),
        ];
        for (json, expected) in cases {
            assert_eq!(size(json), expected, "{json}");
        }
    }

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, expected) in [
            ("", 0),
            ("0", 1),
            ("0-3,8", 5),
            ("3-1", 0),
            ("x", 0),
            ("0, 2-3", 3),
        ] {
            assert_eq!(count(list), expected, "{list}");
        }
    }

    proptest! {
        #[test]
        fn a_machine_is_never_empty(quota: i64, period: u64, limit: i64, list in "[0-9,-]{0,9}") {
            let cpu = serde_json::json!({"quota": quota, "period": period, "cpus": list});
            let json = serde_json::json!({"cpu": cpu, "memory": {"limit": limit}});
            let (vcpus, memory) = size(&json.to_string());
            prop_assert!((1..=4).contains(&vcpus));
            prop_assert!((256..=8192).contains(&memory));
        }
    }
}
