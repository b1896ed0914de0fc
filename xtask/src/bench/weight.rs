//! What the processes of a sandbox weigh on the host.

use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::runtime::Running;

/// A process of a sandbox.
pub(super) struct Process {
    /// What it is in the sandbox.
    pub(super) role: String,
    pid: u64,
}

impl Process {
    /// Those of the sandbox that `first` is the first container of: what its ledger lists, its
    /// monitor, and the stand-ins of its containers.
    pub(super) fn of_sandbox(first: &Running, members: &[&Running]) -> Result<Vec<Process>> {
        let mut found = Vec::new();
        let ledger = first.directory().join("sandbox/ledger");
        for line in fs::read_to_string(ledger)?.lines() {
            let entry: Value = serde_json::from_str(line)?;
            if entry["kind"] == "process" {
                let role = entry["role"].as_str().unwrap_or_default().to_owned();
                let pid = entry["pid"].as_u64().context("a process has an id")?;
                found.push(Process { role, pid });
            }
        }
        let role = "monitor".to_owned();
        let pid = monitor_of(first.id())?;
        found.push(Process { role, pid });
        for container in [&[first], members].concat() {
            let role = "stand-in".to_owned();
            let pid = container.pid()?;
            found.push(Process { role, pid });
        }
        Ok(found)
    }

    /// Proportional set size: what it shares with others counts in part.
    pub(super) fn weight(&self) -> Result<Weight> {
        let path = format!("/proc/{}/smaps", self.pid);
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        Ok(Weight::of(&text))
    }

    /// Processor time that it has used so far, in clock ticks: proc_pid_stat(5).
    pub(super) fn ticks(&self) -> Result<u64> {
        let path = format!("/proc/{}/stat", self.pid);
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        // The second field, in parentheses, may have anything in it.
        let (_, fields) = text.rsplit_once(") ").with_context(|| path.clone())?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let [user, system] = [11, 12].map(|at| fields.get(at).map(|field| field.parse::<u64>()));
        Ok(user.context("utime")?? + system.context("stime")??)
    }
}

/// Memory in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Memory of the guest, which VMM and device process map.
    pub(super) guest: u64,
    /// All else.
    pub(super) own: u64,
    /// The size of the guest's memory, touched or not.
    pub(super) machine: u64,
}

impl Weight {
    /// From the text of smaps: proc_pid_smaps(5).
    fn of(smaps: &str) -> Weight {
        let mut weight = Weight::default();
        let mut is_guest = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next();
            let kib = words.next().and_then(|size| size.parse().ok()).unwrap_or(0);
            match (first, is_guest) {
                // QEMU maps it twice.
                (Some("Size:"), true) => weight.machine = weight.machine.max(kib),
                (Some("Pss:"), true) => weight.guest += kib,
                (Some("Pss:"), false) => weight.own += kib,
                (Some(first), _) if first.ends_with(':') => {}
                _ => is_guest = line.contains("/memfd:"),
            }
        }
        weight
    }

    pub(super) fn all(self) -> u64 {
        self.guest + self.own
    }
}

impl std::iter::Sum for Weight {
    fn sum<I: Iterator<Item = Weight>>(weights: I) -> Weight {
        weights.fold(Weight::default(), |sum, weight| Weight {
            guest: sum.guest + weight.guest,
            own: sum.own + weight.own,
            machine: sum.machine.max(weight.machine),
        })
    }
}

/// The monitor is in no ledger: it is the one who keeps it.
fn monitor_of(id: &str) -> Result<u64> {
    let wanted = ["casemate", "monitor", "--id", id];
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0).take(wanted.len());
        if words.eq(wanted.map(str::as_bytes)) {
            return Ok(pid);
        }
    }
    bail!("the monitor of {id} is not running")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_s_memory_is_told_from_the_rest() {
        let smaps = "7f00-7f10 rw-s 00000000 00:01 5   /memfd:guest (deleted)\n\
                     Size:  262144 kB\nRss:  9000 kB\nPss:  8000 kB\nSwapPss: 7 kB\n\
                     5500-5600 r-xp 00000000 08:01 9   /usr/bin/vmm\n\
                     Pss:  120 kB\nVmFlags: rd ex\n\
                     7f20-7f30 rw-p 00000000 00:00 0\nPss:  3 kB\n";
        let expected = Weight {
            guest: 8000,
            own: 123,
            machine: 262_144,
        };
        assert_eq!(Weight::of(smaps), expected);
    }
}
