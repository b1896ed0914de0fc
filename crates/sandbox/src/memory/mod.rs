//! What a sandbox takes of the host's memory, by process and by kind.
//!
//! The processes are those of the sandbox's ledger, and those that the caller
//! knows beside them. What the kernel counts for nobody is not here: the pages
//! of files that only the page cache has, and the kernel's own memory.

mod smaps;

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path};

pub use smaps::{Amount, Kind, Weight};

use crate::ledger::{self, Ledger};

/// What a process of a sandbox weighs.
#[derive(Debug)]
pub struct Process {
    /// What it is to the sandbox: "monitor", "devices", "vmm", "stand-in".
    pub role: String,
    /// Process id on the host.
    pub pid: u32,
    /// What it has in memory.
    pub weight: Weight,
}

/// The memory of the guest, as the host has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestMemory {
    /// KiB that the guest may touch.
    pub size: u64,
    /// KiB of it that are in memory, whether a process maps them or not.
    pub allocated: u64,
}

/// What a sandbox weighs.
#[derive(Debug)]
pub struct Sandbox {
    /// Its processes; one that ended meanwhile is left out.
    pub processes: Vec<Process>,
    /// None when there is no virtual machine.
    pub guest: Option<GuestMemory>,
}

impl Sandbox {
    /// Weighs the processes of the ledger in `directory`, and `others` by what
    /// they are and their ids.
    ///
    /// # Errors
    /// When the ledger or a process cannot be looked at.
    pub fn weigh(directory: &Path, others: &[(&str, u32)]) -> Result<Self, Error> {
        let recorded = Ledger::processes(directory)?;
        let others = others.iter().map(|(role, pid)| ((*role).to_owned(), *pid));
        let mut vmm = Vec::new();
        let mut read = Vec::new();
        for (role, pid) in recorded.into_iter().chain(others) {
            let Some(text) = smaps_of(pid)? else { continue };
            let mappings = smaps::parse(&text);
            if role == "vmm" {
                vmm.push((pid, mappings.clone()));
            }
            read.push((role, pid, mappings));
        }
        let vmm = vmm.first();
        let guest = vmm.map(|(_, mappings)| smaps::guest_memory(mappings));
        let guest = guest.unwrap_or_default();
        let processes = read.into_iter().map(|(role, pid, mappings)| Process {
            role,
            pid,
            weight: smaps::weigh(&mappings, &guest),
        });
        Ok(Self {
            processes: processes.collect(),
            guest: vmm
                .map(|(pid, _)| guest_memory(*pid, guest.values().copied()))
                .transpose()?,
        })
    }

    /// Weighs one more process, which has nothing of the guest's memory.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn add(&mut self, role: &str, pid: u32) -> Result<(), Error> {
        if let Some(text) = smaps_of(pid)? {
            self.processes.push(Process {
                role: role.to_owned(),
                pid,
                weight: smaps::weigh::<()>(&smaps::parse(&text), &BTreeMap::new()),
            });
        }
        Ok(())
    }

    /// What all processes have. Only the proportional sizes count no page twice.
    pub fn sum(&self) -> Weight {
        let mut sum = Weight::default();
        for process in &self.processes {
            sum += &process.weight;
        }
        sum
    }

    /// KiB of the guest's memory that are there and mapped by nobody: what a
    /// template brought and the guest has not touched.
    pub fn unmapped(&self) -> u64 {
        let allocated = self.guest.map_or(0, |guest| guest.allocated);
        allocated.saturating_sub(self.sum().of(Kind::Guest).pss)
    }
}

/// Why a sandbox could not be weighed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The system does not say.
    #[error("{path}: {source}")]
    Process {
        /// What was asked for.
        path: String,
        /// What it said.
        source: io::Error,
    },
}

/// None for a process that is not there, or no longer.
fn smaps_of(pid: u32) -> Result<Option<String>, Error> {
    let path = format!("/proc/{pid}/smaps");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(source) => Err(Error::Process { path, source }),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn guest_memory<'m>(
    vmm: u32,
    mappings: impl Iterator<Item = &'m smaps::Mapping>,
) -> Result<GuestMemory, Error> {
    let mut guest = GuestMemory {
        size: 0,
        allocated: 0,
    };
    for mapping in mappings {
        let path = format!("/proc/{vmm}/map_files/{}", mapping.range);
        let file = fs::metadata(&path).map_err(|source| Error::Process { path, source })?;
        guest.size += mapping.size_kib();
        // In units of 512 bytes: stat(2).
        guest.allocated += file.blocks() / 2;
    }
    Ok(guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_the_ledger_is_weighed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("box");
        fs::create_dir(&directory).unwrap();
        let mut ledger = Ledger::create(&directory).unwrap();
        let me = std::process::id();
        ledger.record_process("devices", me).unwrap();
        let mut sandbox = Sandbox::weigh(&directory, &[("stand-in", u32::MAX)]).unwrap();
        assert_eq!(sandbox.guest, None);
        let [process] = &sandbox.processes[..] else {
            panic!("{:?}", sandbox.processes)
        };
        assert_eq!((process.role.as_str(), process.pid), ("devices", me));
        assert!(process.weight.of(Kind::Private).rss > 0);
        assert!(process.weight.of(Kind::PageCache).rss > 0);
        assert_eq!(sandbox.sum(), process.weight);
        let alone = sandbox.sum().of(Kind::Private).rss;
        sandbox.add("stand-in", me).unwrap();
        sandbox.add("stand-in", u32::MAX).unwrap();
        assert_eq!(sandbox.processes.len(), 2);
        assert!(sandbox.sum().of(Kind::Private).rss > alone);
    }
}
