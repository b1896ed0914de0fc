//! A running machine.

use std::{
    fs::{self, File},
    io,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::PathBuf,
    time::Duration,
};

use async_trait::async_trait;
use nix::unistd::{SysconfVar, sysconf};
use tokio::{sync::mpsc, time::timeout};

use super::{
    commands::{Continue, Negotiate, Stop},
    plug::{PlugFailure, Slots},
    process::Process,
    qmp::{Command, Failure, Qmp},
};
use crate::{
    Device, DeviceId, Error, Exit, Metrics, Size, Step, TemplateFiles, Thread, ThreadRole, Vm,
};

/// How long QEMU may take to answer: it does so at once, but not on a host that
/// is busy beyond measure.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// A machine run by QEMU.
pub(super) struct Machine {
    process: Process,
    qmp: Qmp,
    parts: Parts,
    steps: Vec<Step>,
}

/// What a machine was started with.
pub(super) struct Parts {
    pub(super) slots: Slots,
    pub(super) size: Size,
    /// How large it can become.
    pub(super) most: Size,
    /// Its memory, if it can be saved.
    pub(super) memory: Option<File>,
}

impl Machine {
    /// Remembers what its start consisted of.
    pub(super) fn with_steps(self, steps: Vec<Step>) -> Self {
        Self { steps, ..self }
    }

    /// Waits until QEMU answers, which it does once the guest runs.
    pub(super) async fn connect(
        process: Process,
        control: UnixStream,
        shutdowns: mpsc::Sender<String>,
        parts: Parts,
    ) -> Result<Self, Error> {
        let qmp = match Qmp::connect(control, shutdowns).await {
            Ok(qmp) => qmp,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Error::Protocol {
                    command: "start",
                    problem: "no greeting of QEMU".to_owned(),
                });
            }
            Err(_) => return Err(Error::Ended(process.exited().await)),
        };
        let machine = Self {
            process,
            qmp,
            parts,
            steps: Vec::new(),
        };
        machine.execute(&Negotiate {}).await?;
        Ok(machine)
    }

    pub(super) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.parts.slots
    }

    /// Its memory, if it can be saved.
    pub(super) fn memory(&self) -> Option<&File> {
        self.parts.memory.as_ref()
    }

    /// How large it was when it started.
    pub(super) fn size(&self) -> Size {
        self.parts.size
    }

    /// How large it can become.
    pub(super) fn most(&self) -> Size {
        self.parts.most
    }

    pub(super) async fn execute<C: Command>(&self, command: &C) -> Result<C::Answer, Error> {
        match self.qmp.execute(command, COMMAND_LIMIT).await {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(self.error(C::NAME, failure).await),
        }
    }

    /// Executes a command that a descriptor belongs to.
    pub(super) async fn execute_with<C: Command>(
        &self,
        command: &C,
        descriptor: BorrowedFd<'_>,
    ) -> Result<C::Answer, Error> {
        let answer = self.qmp.execute_with(command, descriptor, COMMAND_LIMIT);
        match answer.await {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(self.error(C::NAME, failure).await),
        }
    }

    /// What a failed command means to the caller.
    pub(super) async fn error(&self, command: &'static str, failure: Failure) -> Error {
        match failure {
            Failure::Closed => match timeout(COMMAND_LIMIT, self.process.exited()).await {
                Ok(exit) => Error::Ended(exit),
                Err(_) => Error::Protocol {
                    command,
                    problem: "QEMU closed its control connection".to_owned(),
                },
            },
            Failure::Deadline => Error::Deadline {
                command,
                after: COMMAND_LIMIT,
            },
            Failure::Missing(reason) | Failure::Refused(reason) => {
                Error::Refused { command, reason }
            }
            Failure::Protocol(problem) => Error::Protocol { command, problem },
        }
    }

    async fn plug_error(&self, failure: PlugFailure) -> Error {
        match failure {
            PlugFailure::Command(command, failure) => self.error(command, failure).await,
            PlugFailure::Other(error) => error,
        }
    }

    /// The end of a process that is about to end.
    pub(super) async fn ended(&self) -> Exit {
        if timeout(COMMAND_LIMIT, self.process.exited()).await.is_err() {
            self.process.kill();
        }
        self.process.exited().await
    }

    /// Reads a file of the process below `/proc`.
    fn proc(&self, file: &str) -> Result<String, Error> {
        let path = self.process.proc(file);
        fs::read_to_string(&path).map_err(|source| self.unreadable(path, source))
    }

    /// The kernel says ESRCH of a process that has ended.
    fn unreadable(&self, path: PathBuf, source: io::Error) -> Error {
        match self.process.exit() {
            Some(exit) => Error::Ended(exit),
            None => Error::File {
                what: "state of the virtual machine monitor",
                path,
                source,
            },
        }
    }
}

#[async_trait]
impl Vm for Machine {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn steps(&self) -> &[Step] {
        &self.steps
    }

    async fn exited(&self) -> Exit {
        self.process.exited().await
    }

    async fn plug(&self, device: Device) -> Result<DeviceId, Error> {
        match self.parts.slots.plug(&self.qmp, device).await {
            Ok(id) => Ok(id),
            Err(failure) => Err(self.plug_error(failure).await),
        }
    }

    async fn unplug(&self, id: &DeviceId) -> Result<(), Error> {
        match self.parts.slots.unplug(&self.qmp, id).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.plug_error(failure).await),
        }
    }

    async fn pause(&self) -> Result<(), Error> {
        self.execute(&Stop {}).await.map(drop)
    }

    async fn resume(&self) -> Result<(), Error> {
        self.execute(&Continue {}).await.map(drop)
    }

    async fn snapshot(&self, into: &TemplateFiles) -> Result<(), Error> {
        self.save(into).await
    }

    fn threads(&self) -> Result<Vec<Thread>, Error> {
        let path = self.process.proc("task");
        let entries = fs::read_dir(&path).map_err(|source| self.unreadable(path, source))?;
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        // A thread that ends meanwhile is left out.
        let thread = |tid: u32| {
            let name = self.proc(&format!("task/{tid}/comm")).ok()?;
            let role = role(name.trim());
            Some(Thread { tid, role })
        };
        Ok(ids.filter_map(thread).collect())
    }

    fn metrics(&self) -> Result<Metrics, Error> {
        let stat = self.proc("stat")?;
        let memory = self.proc("smaps_rollup")?;
        let broken = || Error::Protocol {
            command: "metrics",
            problem: "the kernel's accounts are not as expected".to_owned(),
        };
        Ok(Metrics {
            cpu_time: cpu_time(&stat).ok_or_else(broken)?,
            pss_bytes: pss_bytes(&memory).ok_or_else(broken)?,
        })
    }

    fn kill(&self) {
        self.process.kill();
    }
}

/// By the name that QEMU gives its threads.
fn role(name: &str) -> ThreadRole {
    if name.starts_with("ALL CPUs/") {
        return ThreadRole::AllVcpus;
    }
    name.strip_prefix("CPU ")
        .and_then(|rest| rest.split_once('/'))
        .and_then(|(index, _)| index.parse().ok())
        .map_or(ThreadRole::Other, ThreadRole::Vcpu)
}

/// Fields 14 and 15 of `/proc/<pid>/stat` (proc(5)); the second one is a name
/// that may contain anything.
fn cpu_time(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let ticks = next()? + next()?;
    let rate = sysconf(SysconfVar::CLK_TCK).ok().flatten()? as u64;
    Some(Duration::from_millis(ticks * 1000 / rate))
}

fn pss_bytes(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_by_their_names() {
        assert_eq!(role("CPU 0/KVM"), ThreadRole::Vcpu(0));
        assert_eq!(role("CPU 12/TCG"), ThreadRole::Vcpu(12));
        assert_eq!(role("ALL CPUs/TCG"), ThreadRole::AllVcpus);
        assert_eq!(role("qemu-system-x86"), ThreadRole::Other);
        assert_eq!(role("CPU x/TCG"), ThreadRole::Other);
    }

    #[test]
    fn accounts_are_read() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 5 6 7";
        let rate = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as u64;
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(200_000 / rate)));
        let own = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        assert!(pss_bytes(&own).unwrap() > 100_000);
        assert_eq!(pss_bytes("Rss: 3 kB\n"), None);
    }
}
