//! Processors and memory: what has been plugged since the boot is taken into use,
//! and what is still to come is waited for.

use std::{fs, io, path::Path};

use crate::{
    arrival::{self, until_seen},
    error::{Doing, Error, Result},
};

const PROCESSORS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
const ZONES: &str = "/proc/zoneinfo";

/// What the firmware may keep of the memory, MiB.
const FIRMWARE: u32 = 4;

/// What the guest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Processors that are online.
    pub(crate) vcpus: u32,
    /// MiB, rounded up.
    pub(crate) memory_mib: u32,
}

impl Capacity {
    /// What there is now.
    pub(crate) fn now() -> Result<Self> {
        Ok(Self {
            vcpus: online_processors()?,
            memory_mib: present_memory()?,
        })
    }

    /// Takes into use what the machine has until there is as much as is wanted; 0
    /// is satisfied by anything.
    ///
    /// # Errors
    /// When something does not come.
    pub(crate) async fn reach(vcpus: u32, memory_mib: u32) -> Result<Self> {
        let wanted = Self { vcpus, memory_mib };
        let mut last = Self {
            vcpus: 0,
            memory_mib: 0,
        };
        let reached = until_seen(Some(arrival::LIMIT), || {
            last = Self::now()?;
            if last.vcpus < vcpus {
                bring_online(Path::new(PROCESSORS), "cpu")?;
                last.vcpus = online_processors()?;
            }
            if !last.has_memory(memory_mib) {
                bring_online(Path::new(MEMORY), "memory")?;
                last.memory_mib = present_memory()?;
            }
            Ok((last.vcpus >= vcpus && last.has_memory(memory_mib)).then_some(last))
        });
        reached.await?.ok_or(Error::NoCapacity {
            wanted,
            there: last,
            limit: arrival::LIMIT,
        })
    }

    fn has_memory(self, wanted_mib: u32) -> bool {
        self.memory_mib.saturating_add(FIRMWARE) > wanted_mib
    }
}

impl std::fmt::Display for Capacity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} processors, {} MiB", self.vcpus, self.memory_mib)
    }
}

fn online_processors() -> Result<u32> {
    let path = Path::new(PROCESSORS).join("online");
    let what = || format!("read {}", path.display());
    let list = fs::read_to_string(&path).doing(what)?;
    members(&list).ok_or(io::ErrorKind::InvalidData).doing(what)
}

/// How many numbers a list of the kernel's has: "0-2,4" has 4.
fn members(list: &str) -> Option<u32> {
    list.trim_end().split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

fn present_memory() -> Result<u32> {
    let what = || format!("read {ZONES}");
    let zones = fs::read_to_string(ZONES).doing(what)?;
    present(&zones)
        .ok_or(io::ErrorKind::InvalidData)
        .doing(what)
}

/// MiB of pages of all zones that there are in truth, rounded up.
fn present(zones: &str) -> Option<u32> {
    const PAGES: u64 = (1 << 20) / 4096;
    let counts = zones.lines().filter_map(|line| {
        let (name, count) = line.trim_start().split_once(char::is_whitespace)?;
        (name == "present").then(|| count.trim_start().parse::<u64>())
    });
    let pages = counts.sum::<std::result::Result<u64, _>>().ok()?;
    u32::try_from(pages.div_ceil(PAGES)).ok()
}

/// Switches on what is off among the devices whose names are `kind` and a number.
fn bring_online(folder: &Path, kind: &str) -> Result<()> {
    let entries = fs::read_dir(folder).doing(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.doing(|| format!("list {}", folder.display()))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(kind));
        if number.is_none_or(|number| number.parse::<u32>().is_err()) {
            continue;
        }
        let switch = entry.path().join("online");
        // The first processor may have none.
        if fs::read_to_string(&switch).is_ok_and(|state| state.trim_end() == "0") {
            fs::write(&switch, "1").doing(|| format!("write 1 to {}", switch.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        assert_eq!(members("0\n"), Some(1));
        assert_eq!(members("0-2,4,6-7\n"), Some(6));
        assert_eq!(members("\n"), None);
        assert_eq!(members("2-1\n"), None);
    }

    #[test]
    fn the_memory_of_all_zones_counts() {
        let zones = "Node 0, zone    DMA32\n  pages free     56\n        boost    0\n        \
                     spanned  65535\n        present  65404\n        managed  57906\n\
                     Node 0, zone   Normal\n        present  32768\n";
        assert_eq!(present(zones), Some(384));
        assert_eq!(present("present x\n"), None);
    }

    #[test]
    fn what_the_firmware_keeps_is_not_missed() {
        let there = |memory_mib| Capacity {
            vcpus: 1,
            memory_mib,
        };
        assert!(there(256).has_memory(256) && there(253).has_memory(256));
        assert!(there(512).has_memory(256) && there(1).has_memory(0));
        assert!(!there(252).has_memory(256));
    }

    #[test]
    fn what_is_off_is_switched_on() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, file: &str, text: &str| {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join(file), text).unwrap();
        };
        let read = |path: &str| fs::read_to_string(folder.path().join(path)).unwrap();
        make("cpu0", "other", "");
        make("cpu1", "online", "0\n");
        make("cpu2", "online", "1\n");
        make("cpufreq", "online", "0\n");
        bring_online(folder.path(), "cpu").unwrap();
        assert_eq!(read("cpu1/online"), "1");
        assert_eq!(read("cpu2/online"), "1\n");
        assert_eq!(read("cpufreq/online"), "0\n");
    }

    #[tokio::test]
    async fn what_is_there_already_is_not_waited_for() {
        let now = Capacity::now().unwrap();
        assert!(now.vcpus >= 1 && now.memory_mib > 64, "{now}");
        let reached = Capacity::reach(now.vcpus, now.memory_mib).await.unwrap();
        assert_eq!(reached, now);
        Capacity::reach(0, 0).await.unwrap();
    }
}
