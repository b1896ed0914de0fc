//! Processors and memory: what has been plugged since the boot is taken into use,
//! and what is still to come is waited for.

use std::{fs, io, path::Path};

use nix::{
    sched::{CpuSet, sched_getaffinity},
    sys::sysinfo::sysinfo,
    unistd::Pid,
};

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
    /// What there is now. `known` spares reading how the memory is made up.
    pub(crate) fn now(known: Option<Zones>) -> Result<Self> {
        Ok(Self {
            vcpus: usable_processors()?,
            memory_mib: Zones::now(known)?.present_mib,
        })
    }

    /// Takes into use what the machine has until there is as much as is wanted; 0
    /// is satisfied by anything. `known` is how the memory was made up once.
    ///
    /// # Errors
    /// When something does not come.
    pub(crate) async fn reach(vcpus: u32, memory_mib: u32, known: Option<Zones>) -> Result<Self> {
        let wanted = Self { vcpus, memory_mib };
        let mut last = Self {
            vcpus: 0,
            memory_mib: 0,
        };
        let reached = until_seen(arrival::LIMIT, || {
            last = Self::now(known)?;
            if last.vcpus < vcpus {
                bring_online(Path::new(PROCESSORS), "cpu")?;
                last.vcpus = online_processors()?;
            }
            if !last.has_memory(memory_mib) {
                bring_online(Path::new(MEMORY), "memory")?;
                last.memory_mib = Zones::now(known)?.present_mib;
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

/// Processors that a process may run on: those that are online, as nobody keeps
/// PID 1 away from any. The kernel answers at once, where the file makes it write
/// and us read a list.
fn usable_processors() -> Result<u32> {
    let set = sched_getaffinity(Pid::from_raw(0)).doing(|| "read the processors".into())?;
    let usable = (0..CpuSet::count()).filter(|&n| set.is_set(n).unwrap_or(false));
    Ok(usable.count() as u32)
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

/// How the memory is made up. What is present is in a long list alone; memory that
/// is plugged or taken away changes what the kernel manages by as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Zones {
    managed: u64,
    present_mib: u32,
}

impl Zones {
    /// Reads the list.
    pub(crate) fn read() -> Result<Self> {
        let what = || format!("read {ZONES}");
        let managed = managed_memory()?;
        let zones = fs::read_to_string(ZONES).doing(what)?;
        let present_mib = present(&zones)
            .ok_or(io::ErrorKind::InvalidData)
            .doing(what)?;
        Ok(Self {
            managed,
            present_mib,
        })
    }

    /// What is so now: what is known, if as much is managed as then.
    fn now(known: Option<Self>) -> Result<Self> {
        match known {
            Some(zones) if managed_memory()? == zones.managed => Ok(zones),
            _ => Self::read(),
        }
    }
}

/// Bytes that the kernel hands out, and has handed out.
fn managed_memory() -> Result<u64> {
    Ok(sysinfo().doing(|| "sysinfo".into())?.ram_total())
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
        let now = Capacity::now(None).unwrap();
        assert!(now.vcpus >= 1 && now.memory_mib > 64, "{now}");
        let reached = Capacity::reach(now.vcpus, now.memory_mib, None);
        assert_eq!(reached.await.unwrap(), now);
        Capacity::reach(0, 0, None).await.unwrap();
    }

    #[test]
    fn what_is_known_of_the_memory_holds_while_as_much_is_managed() {
        let read = Zones::read().unwrap();
        let known = |managed| Zones {
            managed,
            present_mib: 1,
        };
        let now = |zones| Zones::now(Some(zones)).unwrap();
        assert_eq!(now(known(read.managed)).present_mib, 1);
        assert_eq!(now(known(read.managed + 1)), read);
    }
}
