//! Limits of a container on its cgroup on the host, where they hold for the
//! whole virtual machine: guest kernel, VMM and device process included.
//!
//! Every limit has a file for cgroup v1 and one for v2; a directory has those of
//! its own generation and controllers, and only these are written.

use std::{fs, io, path::Path};

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxResources};

use crate::spec::{CPU_PERIOD_US, cpu_max, cpu_weight};

/// What VMM and device process may use beside the guest's memory, in MiB. Some
/// 100 were measured in an idle emulated sandbox; the rest is for the buffers
/// of busy ones and the page cache of their files.
const OVERHEAD_MIB: u64 = 256;

/// An interface file and what is written to it.
type Setting = (&'static str, String);

/// Limits that a VM is held to from the first moment. `memory_mib` is the size
/// of its memory, which its cgroup may exceed by the VMM's own needs; a limit is
/// set only for a container that has one.
pub(crate) fn standing(resources: &LinuxResources, memory_mib: u32) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        weight(cpu, &mut settings);
        placement(cpu, &mut settings);
    }
    let limit = resources
        .memory()
        .as_ref()
        .and_then(|memory| memory.limit());
    if limit.is_some_and(|limit| limit > 0) {
        let bytes = (u64::from(memory_mib) + OVERHEAD_MIB) << 20;
        settings.push(("memory.limit_in_bytes", bytes.to_string()));
        settings.push(("memory.max", bytes.to_string()));
    }
    if let Some(block) = resources.block_io() {
        disks(block, &mut settings);
    }
    settings
}

/// The limit of processor time. It holds from the start of the container's
/// program: what is made before that is the runtime's work, not its own.
pub(crate) fn bandwidth(resources: &LinuxResources) -> Vec<Setting> {
    let Some(cpu) = resources.cpu() else {
        return Vec::new();
    };
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    let Some(max) = cpu_max(quota, period) else {
        return Vec::new();
    };
    let period = if period == 0 { CPU_PERIOD_US } else { period };
    let quota = if quota > 0 { quota } else { -1 };
    vec![
        ("cpu.cfs_period_us", period.to_string()),
        ("cpu.cfs_quota_us", quota.to_string()),
        ("cpu.max", max),
    ]
}

fn weight(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    let shares = cpu.shares().unwrap_or(0);
    if let Some(weight) = cpu_weight(shares) {
        settings.push(("cpu.shares", shares.to_string()));
        settings.push(("cpu.weight", weight.to_string()));
    }
}

/// Processors and memory nodes of the host.
fn placement(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            settings.push((file, list.to_owned()));
        }
    }
}

fn disks(block: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    if let Some(weight) = block.weight().filter(|weight| *weight > 0) {
        settings.push(("blkio.weight", weight.to_string()));
        settings.push(("blkio.bfq.weight", weight.to_string()));
        settings.push(("io.bfq.weight", weight.to_string()));
    }
    for (v1, v2, devices) in [
        (
            "blkio.throttle.read_bps_device",
            "rbps",
            block.throttle_read_bps_device(),
        ),
        (
            "blkio.throttle.write_bps_device",
            "wbps",
            block.throttle_write_bps_device(),
        ),
        (
            "blkio.throttle.read_iops_device",
            "riops",
            block.throttle_read_iops_device(),
        ),
        (
            "blkio.throttle.write_iops_device",
            "wiops",
            block.throttle_write_iops_device(),
        ),
    ] {
        for device in devices.iter().flatten() {
            let (major, minor, rate) = (device.major(), device.minor(), device.rate());
            settings.push((v1, format!("{major}:{minor} {rate}")));
            settings.push(("io.max", format!("{major}:{minor} {v2}={rate}")));
        }
    }
}

/// Writes those settings whose files a cgroup directory has.
///
/// # Errors
/// What the kernel refuses, with the file's name.
pub(crate) fn apply(directory: &Path, settings: &[Setting]) -> io::Result<()> {
    for (file, value) in settings {
        let path = directory.join(file);
        if path.exists() {
            fs::write(&path, value)
                .map_err(|error| io::Error::other(format!("set {file} to {value:?}: {error}")))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn written(settings: &[Setting]) -> Vec<String> {
        let shown = settings
            .iter()
            .map(|(file, value)| format!("{file}={value}"));
        shown.collect()
    }

    #[test]
    fn the_vm_has_room_beside_the_guest_s_memory() {
        let limited = resources(r#"{"memory": {"limit": 67108864}}"#);
        let bytes = (320_u64 + 256) << 20;
        assert_eq!(
            written(&standing(&limited, 320)),
            [
                format!("memory.limit_in_bytes={bytes}"),
                format!("memory.max={bytes}")
            ]
        );
        assert!(standing(&resources(r#"{"memory": {"limit": -1}}"#), 320).is_empty());
        assert!(standing(&resources("{}"), 320).is_empty());
    }

    #[test]
    fn processors_and_disks_of_the_host_are_named_here() {
        let json = r#"{"cpu": {"shares": 1024, "cpus": "0-1", "mems": ""},
            "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 99}]}}"#;
        let settings = written(&standing(&resources(json), 1));
        for expected in [
            "cpu.shares=1024",
            "cpu.weight=39",
            "cpuset.cpus=0-1",
            "blkio.weight=10",
            "blkio.throttle.read_bps_device=8:0 99",
            "io.max=8:0 rbps=99",
        ] {
            assert!(
                settings.contains(&expected.to_owned()),
                "{expected}: {settings:?}"
            );
        }
        assert!(
            !settings
                .iter()
                .any(|setting| setting.starts_with("cpuset.mems"))
        );
    }

    #[test]
    fn processor_time_has_a_period() {
        let quota = written(&bandwidth(&resources(r#"{"cpu": {"quota": 20000}}"#)));
        assert_eq!(
            quota,
            [
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=20000",
                "cpu.max=20000 100000"
            ]
        );
        let none = written(&bandwidth(&resources(r#"{"cpu": {"quota": -1}}"#)));
        assert_eq!(none[2], "cpu.max=max 100000");
        assert!(bandwidth(&resources(r#"{"cpu": {"shares": 2}}"#)).is_empty());
    }

    #[test]
    fn only_files_that_are_there_are_written() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cpu.shares"), "").unwrap();
        let settings = [
            ("cpu.shares", "7".to_owned()),
            ("cpu.weight", "1".to_owned()),
        ];
        apply(directory.path(), &settings).unwrap();
        assert_eq!(
            fs::read_to_string(directory.path().join("cpu.shares")).unwrap(),
            "7"
        );
        assert!(!directory.path().join("cpu.weight").exists());
    }
}
