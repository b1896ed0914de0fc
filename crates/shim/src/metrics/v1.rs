//! The same figures in the words of cgroup v1, `io.containerd.cgroups.v1.Metrics`.
//! What the old interface counts and the new one does not is left out.

use containerd_shim_protos::{
    cgroups::metrics::{
        BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
        MemoryStat, Metrics, PidsStat, Throttle,
    },
    protobuf::MessageField,
};

use super::{Files, io_entry};

/// The type as containerd registers it: full name, without a host.
pub(super) const TYPE: &str = "io.containerd.cgroups.v1.Metrics";

/// Nanoseconds in the unit of cgroup v2.
const NS_IN_US: u64 = 1000;

pub(super) fn metrics(files: &Files<'_>) -> Metrics {
    Metrics {
        pids: MessageField::some(PidsStat {
            current: files.number("pids.current"),
            limit: files.limit("pids.max").unwrap_or(0),
            ..Default::default()
        }),
        cpu: MessageField::some(cpu(files)),
        memory: MessageField::some(memory(files)),
        memory_oom_control: MessageField::some(MemoryOomControl {
            oom_kill: files.keyed("memory.events", "oom_kill"),
            ..Default::default()
        }),
        blkio: MessageField::some(block_io(files)),
        hugetlb: ["2MB", "1GB"]
            .into_iter()
            .filter_map(|size| huge_pages(files, size))
            .collect(),
        ..Default::default()
    }
}

fn cpu(files: &Files<'_>) -> CPUStat {
    let ns = |key| files.keyed("cpu.stat", key).saturating_mul(NS_IN_US);
    CPUStat {
        usage: MessageField::some(CPUUsage {
            total: ns("usage_usec"),
            kernel: ns("system_usec"),
            user: ns("user_usec"),
            ..Default::default()
        }),
        throttling: MessageField::some(Throttle {
            periods: files.keyed("cpu.stat", "nr_periods"),
            throttled_periods: files.keyed("cpu.stat", "nr_throttled"),
            throttled_time: ns("throttled_usec"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// cgroup v2 counts a group with all below it, which are the "total" ones here.
fn memory(files: &Files<'_>) -> MemoryStat {
    let stat = |key| files.keyed("memory.stat", key);
    let limit = |name| files.limit(name).unwrap_or(u64::MAX);
    let memory_limit = limit("memory.max");
    MemoryStat {
        cache: stat("file"),
        total_cache: stat("file"),
        rss: stat("anon"),
        total_rss: stat("anon"),
        rss_huge: stat("anon_thp"),
        total_rss_huge: stat("anon_thp"),
        mapped_file: stat("file_mapped"),
        total_mapped_file: stat("file_mapped"),
        dirty: stat("file_dirty"),
        total_dirty: stat("file_dirty"),
        writeback: stat("file_writeback"),
        total_writeback: stat("file_writeback"),
        pg_fault: stat("pgfault"),
        total_pg_fault: stat("pgfault"),
        pg_maj_fault: stat("pgmajfault"),
        total_pg_maj_fault: stat("pgmajfault"),
        inactive_anon: stat("inactive_anon"),
        total_inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        total_active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        total_inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        total_active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        total_unevictable: stat("unevictable"),
        hierarchical_memory_limit: memory_limit,
        usage: MessageField::some(MemoryEntry {
            limit: memory_limit,
            usage: files.number("memory.current"),
            max: files.number("memory.peak"),
            failcnt: files.keyed("memory.events", "max"),
            ..Default::default()
        }),
        // In these words, swap is memory and swap together.
        swap: MessageField::some(MemoryEntry {
            limit: memory_limit.saturating_add(limit("memory.swap.max")),
            usage: files.number("memory.current") + files.number("memory.swap.current"),
            ..Default::default()
        }),
        kernel: MessageField::some(MemoryEntry {
            usage: stat("kernel_stack") + stat("slab"),
            ..Default::default()
        }),
        kernel_tcp: MessageField::some(MemoryEntry {
            usage: stat("sock"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn block_io(files: &Files<'_>) -> BlkIOStat {
    let mut io = BlkIOStat::default();
    for device in files.text("io.stat").lines().filter_map(io_entry) {
        let entry = |op: &str, value| BlkIOEntry {
            op: op.to_owned(),
            major: device.major,
            minor: device.minor,
            value,
            ..Default::default()
        };
        let bytes = [("Read", device.rbytes), ("Write", device.wbytes)];
        let counts = [("Read", device.rios), ("Write", device.wios)];
        let (bytes, counts) = (bytes.into_iter(), counts.into_iter());
        let entries = bytes.map(|(op, value)| entry(op, value));
        io.io_service_bytes_recursive.extend(entries);
        let entries = counts.map(|(op, value)| entry(op, value));
        io.io_serviced_recursive.extend(entries);
    }
    io
}

fn huge_pages(files: &Files<'_>, size: &str) -> Option<HugetlbStat> {
    let current = format!("hugetlb.{size}.current");
    files.0.contains_key(&current).then(|| HugetlbStat {
        usage: files.number(&current),
        pagesize: size.to_owned(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_words_for_the_same() {
        let pairs = [
            ("pids.current", "3\n"),
            ("cpu.stat", "usage_usec 100\nuser_usec 60\nsystem_usec 40\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "1\n"),
            ("memory.stat", "anon 11\nfile 12\ninactive_file 5\n"),
            ("memory.events", "max 4\noom_kill 1\n"),
            ("io.stat", "254:1 rbytes=1 wbytes=2 rios=3 wios=4\n"),
        ];
        let owned = pairs.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let metrics = metrics(&Files(&owned.into_iter().collect()));
        assert_eq!(metrics.pids.current, 3);
        let cpu = &metrics.cpu.usage;
        assert_eq!((cpu.total, cpu.user, cpu.kernel), (100_000, 60_000, 40_000));
        let memory = &metrics.memory;
        assert_eq!((memory.total_rss, memory.cache), (11, 12));
        assert_eq!(memory.total_inactive_file, 5);
        assert_eq!((memory.usage.usage, memory.usage.limit), (4096, u64::MAX));
        assert_eq!((memory.usage.failcnt, memory.swap.usage), (4, 4097));
        assert_eq!(metrics.memory_oom_control.oom_kill, 1);
        let bytes = &metrics.blkio.io_service_bytes_recursive;
        assert_eq!((bytes[1].op.as_str(), bytes[1].value), ("Write", 2));
        assert_eq!(metrics.blkio.io_serviced_recursive[0].value, 3);
    }
}
