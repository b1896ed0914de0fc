//! `linux.resources` as settings of the container's cgroup v2 in the guest.
//!
//! Limits of what the container uses inside the guest (memory, processor time,
//! processes, huge pages) are set there. What names things of the host (its
//! processors in `cpu.cpus`, its memory nodes, its disks in `blockIO`) can only
//! be meant for the host's processes of the sandbox, so it stays in
//! [`super::HostSpec::resources`]; the same goes for these in `unified`.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::Error;

const MEMORY: &str = "linux.resources.memory";
const CPU: &str = "linux.resources.cpu";
const HUGE_PAGES: &str = "linux.resources.hugepageLimits";
const UNIFIED: &str = "linux.resources.unified";

/// The kernel's period of a CPU quota where none is given, in microseconds.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;

/// Interface file of the cgroup to its value.
pub(super) type Settings = BTreeMap<String, String>;

/// The settings of a container's cgroup in the guest, at its creation and for
/// an update.
pub(super) fn cgroup_settings(
    resources: &LinuxResources,
    warnings: &mut Vec<String>,
) -> Result<Settings, Error> {
    let mut settings = Settings::new();
    if let Some(memory) = resources.memory() {
        set_memory(memory, &mut settings)?;
        warn_of_memory(memory, warnings);
    }
    if let Some(cpu) = resources.cpu() {
        set_cpu(cpu, &mut settings)?;
    }
    if let Some(pids) = resources.pids() {
        set_limit(
            &mut settings,
            "pids.max",
            "linux.resources.pids.limit",
            pids.limit(),
        )?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        set_huge_pages(limit, &mut settings)?;
    }
    if resources
        .rdma()
        .as_ref()
        .is_some_and(|rdma| !rdma.is_empty())
    {
        let reason = "a virtual machine has no RDMA device";
        return Err(Error::unsupported("linux.resources.rdma", reason));
    }
    if resources.network().is_some() {
        let reason = "has no effect: cgroup v2 has no classes and priorities of packets";
        warnings.push(format!("linux.resources.network {reason}"));
    }
    for (name, value) in resources.unified().iter().flatten() {
        set_unified(name, value, &mut settings)?;
    }
    Ok(settings)
}

fn set_memory(memory: &LinuxMemory, settings: &mut Settings) -> Result<(), Error> {
    let limit = memory.limit().unwrap_or(0);
    let swap = memory.swap().unwrap_or(0);
    set_limit(settings, "memory.max", MEMORY, limit)?;
    set_limit(
        settings,
        "memory.low",
        MEMORY,
        memory.reservation().unwrap_or(0),
    )?;
    if let Some(swap) = swap_limit(limit, swap)? {
        settings.insert("memory.swap.max".to_owned(), swap);
    }
    Ok(())
}

/// `memory.swap.max` of cgroup v2, which limits swap alone, from the limit of
/// memory and swap together (runtime spec, "Memory"; the corner cases are
/// those of runc: 0 is "not given", and no limit of memory is none of swap).
fn swap_limit(limit: i64, limit_with_swap: i64) -> Result<Option<String>, Error> {
    const FIELD: &str = "linux.resources.memory.swap";
    match (limit, limit_with_swap) {
        (-1, 0) | (_, -1) => Ok(Some("max".to_owned())),
        (_, 0) => Ok(None),
        (..=-2, _) => Err(Error::invalid(MEMORY, limit, "is not a limit")),
        (_, ..=-2) => Err(Error::invalid(FIELD, limit_with_swap, "is not a limit")),
        (0 | -1, _) => {
            let problem = "limits swap without a limit of memory";
            Err(Error::invalid(FIELD, limit_with_swap, problem))
        }
        _ if limit_with_swap < limit => {
            let problem = "is below the limit of memory, which it includes";
            Err(Error::invalid(FIELD, limit_with_swap, problem))
        }
        _ => Ok(Some((limit_with_swap - limit).to_string())),
    }
}

fn warn_of_memory(memory: &LinuxMemory, warnings: &mut Vec<String>) {
    let given = [
        ("kernel", memory.kernel().is_some_and(|limit| limit > 0)),
        (
            "kernelTCP",
            memory.kernel_tcp().is_some_and(|limit| limit > 0),
        ),
        ("swappiness", memory.swappiness().is_some()),
        (
            "disableOOMKiller",
            memory.disable_oom_killer() == Some(true),
        ),
        (
            "checkBeforeUpdate",
            memory.check_before_update() == Some(true),
        ),
    ];
    for (name, _) in given.iter().filter(|(_, given)| *given) {
        warnings.push(format!(
            "{MEMORY}.{name} has no effect: cgroup v2 has no such setting"
        ));
    }
}

fn set_cpu(cpu: &LinuxCpu, settings: &mut Settings) -> Result<(), Error> {
    let realtime =
        cpu.realtime_runtime().unwrap_or(0) != 0 || cpu.realtime_period().unwrap_or(0) != 0;
    if realtime {
        return Err(Error::unsupported(
            CPU,
            "cgroup v2 has no budget of real-time",
        ));
    }
    let idle = cpu.idle().unwrap_or(0);
    if !(0..=1).contains(&idle) {
        return Err(Error::invalid(
            "linux.resources.cpu.idle",
            idle,
            "is neither 0 nor 1",
        ));
    }
    if cpu.idle().is_some() {
        settings.insert("cpu.idle".to_owned(), idle.to_string());
    }
    // The weight of an idle cgroup is fixed; setting it is an error.
    let weight = cpu_weight(cpu.shares().unwrap_or(0));
    if let Some(weight) = weight.filter(|_| idle == 0) {
        settings.insert("cpu.weight".to_owned(), weight.to_string());
    }
    if let Some(max) = cpu_max(cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0)) {
        settings.insert("cpu.max".to_owned(), max);
    }
    if let Some(burst) = cpu.burst() {
        settings.insert("cpu.max.burst".to_owned(), burst.to_string());
    }
    Ok(())
}

/// `cpu.weight` (1 to 10000) from the shares of cgroup v1 (2 to 262144) by the
/// linear formula of runc and crun; 0 is "not given".
pub(crate) fn cpu_weight(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        _ => Some(1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142),
    }
}

/// `cpu.max` from quota and period in microseconds; 0 is "not given", a
/// negative quota is no limit, and the kernel's period is 100 ms.
pub(crate) fn cpu_max(quota: i64, period: u64) -> Option<String> {
    if quota == 0 && period == 0 {
        return None;
    }
    let period = if period == 0 { CPU_PERIOD_US } else { period };
    Some(match quota {
        1.. => format!("{quota} {period}"),
        _ => format!("max {period}"),
    })
}

/// A limit that is -1 for none and 0 for "not given".
fn set_limit(settings: &mut Settings, file: &str, field: &str, limit: i64) -> Result<(), Error> {
    let value = match limit {
        0 => return Ok(()),
        -1 => "max".to_owned(),
        1.. => limit.to_string(),
        _ => return Err(Error::invalid(field, limit, "is not a limit")),
    };
    settings.insert(file.to_owned(), value);
    Ok(())
}

/// A limit of 0 is not set: the guest has no huge pages unless the sandbox is
/// given some, and the kubelet sends a limit of 0 for every size that its host
/// has, of which the guest may not know all.
fn set_huge_pages(limit: &LinuxHugepageLimit, settings: &mut Settings) -> Result<(), Error> {
    let size = limit.page_size();
    let digits = size
        .trim_end_matches("KB")
        .trim_end_matches("MB")
        .trim_end_matches("GB");
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || digits.len() + 2 != size.len() {
        return Err(Error::invalid(
            HUGE_PAGES,
            size,
            "is no page size such as 2MB",
        ));
    }
    set_limit(
        settings,
        &format!("hugetlb.{size}.max"),
        HUGE_PAGES,
        limit.limit(),
    )
}

/// A file of the cgroup by name, which replaces what other fields set. The
/// files of the core (`cgroup.procs` …) are the agent's.
fn set_unified(name: &str, value: &str, settings: &mut Settings) -> Result<(), Error> {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_file = name.bytes().all(letters) && name.trim_matches('.').contains('.');
    if !is_file {
        return Err(Error::invalid(
            UNIFIED,
            name,
            "is no file of a cgroup controller",
        ));
    }
    match name.split('.').next() {
        Some("cgroup") => {
            let reason = format!("{name}: the runtime alone sets the files of the cgroup core");
            Err(Error::unsupported(UNIFIED, reason))
        }
        Some("io" | "cpuset") => Ok(()),
        _ => {
            settings.insert(name.to_owned(), value.to_owned());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(json: &str) -> Result<Vec<String>, String> {
        let resources = serde_json::from_str(json).unwrap();
        let settings = cgroup_settings(&resources, &mut Vec::new());
        let settings = settings.map_err(|error| error.to_string())?;
        Ok(settings
            .iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect())
    }

    #[test]
    fn resources_become_files_of_cgroup_v2() {
        let cases: &[(&str, &[&str])] = &[
            ("{}", &[]),
            (
                r#"{"memory": {"limit": 64, "swap": 128, "reservation": 32}}"#,
                &["memory.low=32", "memory.max=64", "memory.swap.max=64"],
            ),
            (
                r#"{"memory": {"limit": 64, "swap": 64}}"#,
                &["memory.max=64", "memory.swap.max=0"],
            ),
            (
                r#"{"memory": {"limit": -1}}"#,
                &["memory.max=max", "memory.swap.max=max"],
            ),
            (r#"{"memory": {"swap": -1}}"#, &["memory.swap.max=max"]),
            (r#"{"memory": {"limit": 0, "swap": 0}}"#, &[]),
            (r#"{"cpu": {"shares": 1024}}"#, &["cpu.weight=39"]),
            (r#"{"cpu": {"shares": 0, "quota": 0, "period": 0}}"#, &[]),
            (
                r#"{"cpu": {"quota": 50000, "period": 100000}}"#,
                &["cpu.max=50000 100000"],
            ),
            (r#"{"cpu": {"quota": 50000}}"#, &["cpu.max=50000 100000"]),
            (
                r#"{"cpu": {"quota": -1, "period": 20000}}"#,
                &["cpu.max=max 20000"],
            ),
            (r#"{"cpu": {"idle": 1, "shares": 512}}"#, &["cpu.idle=1"]),
            (
                r#"{"cpu": {"quota": 10, "burst": 5}}"#,
                &["cpu.max=10 100000", "cpu.max.burst=5"],
            ),
            (r#"{"cpu": {"cpus": "0-3", "mems": "0"}}"#, &[]),
            (r#"{"pids": {"limit": 100}}"#, &["pids.max=100"]),
            (r#"{"pids": {"limit": -1}}"#, &["pids.max=max"]),
            (r#"{"pids": {"limit": 0}}"#, &[]),
            (
                r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 9}, {"pageSize": "1GB", "limit": 0}]}"#,
                &["hugetlb.2MB.max=9"],
            ),
            (
                r#"{"memory": {"limit": 64}, "unified": {"memory.max": "65", "io.weight": "1", "cpuset.cpus": "7"}}"#,
                &["memory.max=65"],
            ),
            (r#"{"blockIO": {"weight": 0}}"#, &[]),
        ];
        for (json, expected) in cases {
            assert_eq!(settings(json).unwrap(), *expected, "{json}");
        }
    }

    #[test]
    fn impossible_resources_are_refused() {
        let cases = [
            (
                r#"{"memory": {"limit": 64, "swap": 32}}"#,
                r#"linux.resources.memory.swap: "32" is below the limit of memory, which it includes"#,
            ),
            (
                r#"{"memory": {"swap": 32}}"#,
                r#"linux.resources.memory.swap: "32" limits swap without a limit of memory"#,
            ),
            (
                r#"{"memory": {"limit": -2}}"#,
                r#"linux.resources.memory: "-2" is not a limit"#,
            ),
            (
                r#"{"cpu": {"idle": 2}}"#,
                r#"linux.resources.cpu.idle: "2" is neither 0 nor 1"#,
            ),
            (
                r#"{"cpu": {"realtimeRuntime": 9}}"#,
                "linux.resources.cpu: cgroup v2 has no budget of real-time",
            ),
            (
                r#"{"hugepageLimits": [{"pageSize": "../MB", "limit": 1}]}"#,
                r#"linux.resources.hugepageLimits: "../MB" is no page size such as 2MB"#,
            ),
            (
                r#"{"unified": {"../x": "1"}}"#,
                r#"linux.resources.unified: "../x" is no file of a cgroup controller"#,
            ),
            (
                r#"{"unified": {"..": "1"}}"#,
                r#"linux.resources.unified: ".." is no file of a cgroup controller"#,
            ),
            (
                r#"{"unified": {"cgroup.procs": "1"}}"#,
                "linux.resources.unified: cgroup.procs: \
                 the runtime alone sets the files of the cgroup core",
            ),
            (
                r#"{"rdma": {"mlx5_1": {"hcaHandles": 3}}}"#,
                "linux.resources.rdma: a virtual machine has no RDMA device",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(settings(json).unwrap_err(), expected, "{json}");
        }
    }

    #[test]
    fn what_cgroup_v2_lacks_is_said() {
        let resources = serde_json::from_str(
            r#"{"memory": {"swappiness": 10, "disableOOMKiller": true, "kernel": 1},
                "network": {"classID": 1}}"#,
        )
        .unwrap();
        let mut warnings = Vec::new();
        cgroup_settings(&resources, &mut warnings).unwrap();
        assert_eq!(warnings.len(), 4, "{warnings:?}");
    }

    #[test]
    fn the_ends_of_the_shares_are_the_ends_of_the_weights() {
        assert_eq!(cpu_weight(1), Some(1));
        assert_eq!(cpu_weight(2), Some(1));
        assert_eq!(cpu_weight(262_144), Some(10_000));
        assert_eq!(cpu_weight(u64::MAX), Some(10_000));
    }

    proptest! {
        #[test]
        fn more_shares_are_never_less_weight(a in 1..300_000_u64, b in 1..300_000_u64) {
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(cpu_weight(less) <= cpu_weight(more));
            prop_assert!((1..=10_000).contains(&cpu_weight(a).unwrap()));
        }

        #[test]
        fn memory_and_swap_add_up(limit in 1..i64::MAX / 2, swap in 0..i64::MAX / 2) {
            let written = swap_limit(limit, limit + swap).unwrap();
            prop_assert_eq!(written, Some(swap.to_string()));
        }

        #[test]
        fn no_limits_make_it_panic(limit: i64, swap: i64, quota: i64, period: u64) {
            let _ = swap_limit(limit, swap);
            let _ = cpu_max(quota, period);
        }
    }
}
