//! How large the processes of the steady container are.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::wait::until;
use casemate_e2e::{Host, Podman};

use super::worker::parts_of;

/// How much more memory a process may have: what an allocator keeps, no more.
const SLACK_KIB: u64 = 2048;
/// The same for the guest's kernel, which keeps what it has read.
const GUEST_SLACK_KIB: u64 = 12 * 1024;
/// How many more descriptors: the device process has one for each file that the guest's kernel
/// remembers. One for each operation would be many more.
const SLACK_DESCRIPTORS: usize = 4;
/// As long as the last exec's descriptors may take to go.
const SETTLE: Duration = Duration::from_secs(10);

/// A process, with what it holds.
struct Size {
    pid: i32,
    name: String,
    memory_kib: u64,
    descriptors: usize,
    threads: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {}: {} KiB, {} descriptors, {} threads ({})",
            self.pid, self.memory_kib, self.descriptors, self.threads, self.name
        )
    }
}

/// The processes of a container, and how much memory its guest has left.
pub(super) struct Sizes {
    processes: Vec<Size>,
    guest_kib: Option<u64>,
}

impl Sizes {
    pub(super) fn of(host: &Host, podman: &Podman<'_>, container: &str) -> Result<Sizes> {
        let pid = podman.inspect(container, "{{.State.Pid}}")?.parse()?;
        let processes = parts_of(container, pid);
        let processes: Vec<Size> = processes
            .iter()
            .map(|process| Size::of(process.pid, &process.argv.join(" ")))
            .collect::<Result<_>>()?;
        for size in &processes {
            host.note(size.to_string());
        }
        Ok(Sizes {
            processes,
            guest_kib: guest_kib(host, podman, container)?,
        })
    }

    /// Demands that they are what they were, once the last operation has settled.
    pub(super) fn have_not_grown(
        &self,
        host: &Host,
        podman: &Podman<'_>,
        container: &str,
    ) -> Result<()> {
        let mut last = String::new();
        let settled = until("sizes as before", SETTLE, || {
            let now = Sizes::of(host, podman, container)?;
            last = self.grown(&now).join("\n");
            Ok(last.is_empty().then_some(()))
        });
        settled.with_context(|| format!("has grown:\n{last}"))
    }

    fn grown(&self, now: &Sizes) -> Vec<String> {
        let mut found = Vec::new();
        let (then, there) = (self.processes.len(), now.processes.len());
        if then != there {
            found.push(format!("{then} processes are {there} now"));
        }
        for (then, now) in self.processes.iter().zip(&now.processes) {
            if then.pid != now.pid
                || now.memory_kib > then.memory_kib + SLACK_KIB
                || now.descriptors > then.descriptors + SLACK_DESCRIPTORS
                || now.threads > then.threads
            {
                found.push(format!("{then}\n  is now {now}"));
            }
        }
        if let (Some(then), Some(now)) = (self.guest_kib, now.guest_kib)
            && now + GUEST_SLACK_KIB < then
        {
            found.push(format!("the guest had {then} KiB and has {now}"));
        }
        found
    }
}

impl Size {
    fn of(pid: i32, name: &str) -> Result<Size> {
        let count = |folder: &str| -> Result<usize> {
            let path = format!("/proc/{pid}/{folder}");
            Ok(fs::read_dir(&path).with_context(|| path.clone())?.count())
        };
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let memory_kib = own_memory_kib(&text);
        ensure!(memory_kib > 0, "{path} shows no memory");
        Ok(Size {
            pid,
            name: name.chars().take(60).collect(),
            memory_kib,
            descriptors: count("fd")?,
            threads: count("task")?,
        })
    }
}

/// What a process has made for itself, by smaps of proc(5). The guest's memory is not counted,
/// which fills until the guest has used all of it, nor is code that QEMU has translated, for
/// which there is a buffer of one size.
fn own_memory_kib(smaps: &str) -> u64 {
    let mut counts = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        match first {
            "Private_Dirty:" if counts => {
                sum += second
                    .and_then(|size| size.parse::<u64>().ok())
                    .unwrap_or(0);
            }
            _ if first.ends_with(':') => {}
            _ => {
                counts = second.is_some_and(|rights| rights.ends_with('p') && !rights.contains('x'))
            }
        }
    }
    sum
}

/// What is free or can be freed at once in the guest.
fn guest_kib(host: &Host, podman: &Podman<'_>, container: &str) -> Result<Option<u64>> {
    if !host.runtime.is_vm() {
        return Ok(None);
    }
    let exec = podman.command(["exec", container, "cat", "/proc/meminfo"])?;
    let told = exec.run()?.ok()?;
    let text = told.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let size = line.and_then(|line| line.split_whitespace().next());
    Ok(Some(size.context("MemAvailable")?.parse()?))
}
