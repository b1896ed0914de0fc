//! What the kernel says of processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context, Result};

/// Proportional set size in KiB: what a process shares with others counts in part.
pub(super) fn pss_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    pss(&text).context(path)
}

fn pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Nanoseconds that the processes of each role have run so far.
pub(super) fn used(pids: &[(String, u32)]) -> Result<BTreeMap<String, u64>> {
    let mut used = BTreeMap::new();
    for (role, pid) in pids {
        *used.entry(role.clone()).or_default() += nanoseconds(*pid)?;
    }
    Ok(used)
}

/// All threads of a process: the kernel's documentation, scheduler/sched-stats.
pub(super) fn nanoseconds(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/task");
    let mut sum = 0;
    for thread in fs::read_dir(&path).with_context(|| path.clone())? {
        // One that ends meanwhile was not idle.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        sum += text
            .split_whitespace()
            .next()
            .and_then(|number| number.parse::<u64>().ok())
            .with_context(|| format!("{path}: the kernel does not count processor time"))?;
    }
    Ok(sum)
}

/// The processes with this path on their command line.
pub(super) fn naming(path: &Path) -> Result<BTreeSet<u32>> {
    let wanted = path.as_os_str().as_bytes();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.windows(wanted.len()).any(|part| part == wanted) {
            found.insert(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_figures_are_read() {
        let rollup = "5500-7fff ---p 00000000 00:00 0 [rollup]\nRss: 9 kB\nPss:  812 kB\n";
        assert_eq!(pss(rollup), Some(812));
        assert_eq!(pss("Rss: 9 kB\n"), None);
        let me = std::process::id();
        assert!(pss_kib(me).unwrap() > 0);
        assert!(nanoseconds(me).unwrap() > 0);
        assert!(pss_kib(u32::MAX).is_err());
    }
}
