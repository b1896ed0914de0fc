//! What a container has used, in containerd's words: the files of its cgroup in
//! the guest (cgroup-v2.rst) as `io.containerd.cgroups.v2.Metrics`, or for a
//! containerd on a host with cgroup v1 as what it expects there ([`v1`]).
//!
//! The files come from the guest: what is no number counts as 0, and nothing
//! else can go wrong.

mod v1;

use std::path::Path;

use casemate_sandbox::CgroupFiles;
use containerd_shim_protos::{
    cgroups_v2::metrics::{
        CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData,
        PSIStats, PidsStat,
    },
    protobuf::{Message, MessageField, Result, well_known_types::any::Any},
};

/// The type as containerd registers it: full name, without a host.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// The words that a client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// Those of cgroup v1.
    V1,
    /// Those of cgroup v2.
    V2,
}

impl Version {
    /// What containerd expects of a runtime here: it looks at the host as well.
    pub(crate) fn of_host() -> Self {
        match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            true => Self::V2,
            false => Self::V1,
        }
    }
}

/// For the answer to Task.Stats.
pub(crate) fn to_any(files: &CgroupFiles, version: Version) -> Result<Any> {
    let (type_url, value) = match version {
        Version::V1 => (v1::TYPE, v1::metrics(&Files(files)).write_to_bytes()?),
        Version::V2 => (TYPE, to_bytes(files)?),
    };
    Ok(Any {
        type_url: type_url.to_owned(),
        value,
        ..Default::default()
    })
}

/// In the words of cgroup v2.
pub(crate) fn to_bytes(files: &CgroupFiles) -> Result<Vec<u8>> {
    metrics(files).write_to_bytes()
}

fn metrics(files: &CgroupFiles) -> Metrics {
    let files = Files(files);
    Metrics {
        pids: MessageField::some(PidsStat {
            current: files.number("pids.current"),
            limit: files.limit("pids.max").unwrap_or(0),
            ..Default::default()
        }),
        cpu: MessageField::some(cpu(&files)),
        memory: MessageField::some(memory(&files)),
        memory_events: MessageField::some(memory_events(&files)),
        io: MessageField::some(IOStat {
            usage: files.text("io.stat").lines().filter_map(io_entry).collect(),
            psi: files.pressure("io.pressure"),
            ..Default::default()
        }),
        hugetlb: ["2MB", "1GB"]
            .into_iter()
            .filter_map(|size| huge_pages(&files, size))
            .collect(),
        ..Default::default()
    }
}

fn cpu(files: &Files<'_>) -> CPUStat {
    let stat = |key| files.keyed("cpu.stat", key);
    CPUStat {
        usage_usec: stat("usage_usec"),
        user_usec: stat("user_usec"),
        system_usec: stat("system_usec"),
        nr_periods: stat("nr_periods"),
        nr_throttled: stat("nr_throttled"),
        throttled_usec: stat("throttled_usec"),
        nr_bursts: stat("nr_bursts"),
        burst_usec: stat("burst_usec"),
        psi: files.pressure("cpu.pressure"),
        ..Default::default()
    }
}

fn memory(files: &Files<'_>) -> MemoryStat {
    let stat = |key| files.keyed("memory.stat", key);
    MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: stat("workingset_refault_anon") + stat("workingset_refault_file"),
        workingset_activate: stat("workingset_activate_anon") + stat("workingset_activate_file"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: files.number("memory.current"),
        // containerd has no word for "none".
        usage_limit: files.limit("memory.max").unwrap_or(u64::MAX),
        swap_usage: files.number("memory.swap.current"),
        swap_limit: files.limit("memory.swap.max").unwrap_or(u64::MAX),
        max_usage: files.number("memory.peak"),
        psi: files.pressure("memory.pressure"),
        ..Default::default()
    }
}

fn memory_events(files: &Files<'_>) -> MemoryEvents {
    let count = |key| files.keyed("memory.events", key);
    MemoryEvents {
        low: count("low"),
        high: count("high"),
        max: count("max"),
        oom: count("oom"),
        oom_kill: count("oom_kill"),
        oom_group_kill: count("oom_group_kill"),
        ..Default::default()
    }
}

/// A line of io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 …".
fn io_entry(line: &str) -> Option<IOEntry> {
    let (device, counters) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let counter = |name| {
        let mut pairs = counters.split(' ').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(key, _)| *key == name);
        found.map_or(0, |(_, value)| number(value))
    };
    Some(IOEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        rbytes: counter("rbytes"),
        wbytes: counter("wbytes"),
        rios: counter("rios"),
        wios: counter("wios"),
        ..Default::default()
    })
}

fn huge_pages(files: &Files<'_>, size: &str) -> Option<HugeTlbStat> {
    let current = format!("hugetlb.{size}.current");
    files.0.contains_key(&current).then(|| HugeTlbStat {
        current: files.number(&current),
        max: files
            .limit(&format!("hugetlb.{size}.max"))
            .unwrap_or(u64::MAX),
        pagesize: size.to_owned(),
        ..Default::default()
    })
}

struct Files<'a>(&'a CgroupFiles);

impl Files<'_> {
    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        number(self.text(name))
    }

    /// None for "max", and where there is no such file.
    fn limit(&self, name: &str) -> Option<u64> {
        self.text(name).trim().parse().ok()
    }

    fn keyed(&self, name: &str, key: &str) -> u64 {
        let mut pairs = self
            .text(name)
            .lines()
            .filter_map(|line| line.split_once(' '));
        let found = pairs.find(|(name, _)| *name == key);
        found.map_or(0, |(_, value)| number(value))
    }

    /// Pressure stall information; absent where the kernel does not keep it.
    fn pressure(&self, name: &str) -> MessageField<PSIStats> {
        let data = |kind: &str| {
            let line = self.text(name).lines().find(|line| line.starts_with(kind));
            MessageField::from_option(line.map(pressure_line))
        };
        MessageField::from_option(self.0.contains_key(name).then(|| PSIStats {
            some: data("some "),
            full: data("full "),
            ..Default::default()
        }))
    }
}

/// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0".
fn pressure_line(line: &str) -> PSIData {
    let part = |name: &str| {
        let mut pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(key, _)| *key == name);
        found.map_or("", |(_, value)| value)
    };
    let average = |name| part(name).parse().unwrap_or(0.0);
    PSIData {
        avg10: average("avg10"),
        avg60: average("avg60"),
        avg300: average("avg300"),
        total: number(part("total")),
        ..Default::default()
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> CgroupFiles {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn files_become_numbers() {
        let metrics = metrics(&files(&[
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 100\nuser_usec 60\nsystem_usec 40\n"),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("memory.stat", "anon 11\nanon_thp 12\n"),
            ("memory.events", "oom 2\noom_kill 1\n"),
            (
                "io.stat",
                "254:1 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n\n",
            ),
            ("hugetlb.2MB.current", "0\n"),
        ]));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
        let cpu = &metrics.cpu;
        assert_eq!(
            (cpu.usage_usec, cpu.user_usec, cpu.system_usec),
            (100, 60, 40)
        );
        assert_eq!((cpu.psi.some.avg10, cpu.psi.some.total), (1.5, 7));
        let memory = &metrics.memory;
        assert_eq!((memory.usage, memory.usage_limit), (4096, 8192));
        assert_eq!((memory.anon, memory.anon_thp), (11, 12));
        assert_eq!(memory.swap_limit, u64::MAX);
        assert_eq!(
            (metrics.memory_events.oom, metrics.memory_events.oom_kill),
            (2, 1)
        );
        let disk = &metrics.io.usage[0];
        assert_eq!(
            (disk.major, disk.minor, disk.wbytes, disk.wios),
            (254, 1, 2, 4)
        );
        assert_eq!(metrics.hugetlb[0].max, u64::MAX);
    }

    #[test]
    fn a_guest_may_send_anything() {
        let metrics = metrics(&files(&[
            ("pids.current", "-1"),
            ("memory.stat", "anon\nanon x\n\0"),
            ("io.stat", "8:0\n:\n8:x a=b\n"),
            ("cpu.pressure", ""),
        ]));
        assert_eq!(metrics.pids.current, 0);
        assert_eq!(metrics.memory.anon, 0);
        assert!(metrics.io.usage.is_empty());
        assert!(metrics.cpu.psi.some.is_none());
    }
}
