//! Containers and their processes as the agent keeps them. How they are made
//! is in [`birth`]; what happens in the new process itself is in
//! [`crate::child`].

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use casemate_linux::{process::signal_pidfd, terminal};
use casemate_protocol::agent::{
    ContainerSpec, DeviceRule, ListProcessesResponse, Span, WaitProcessResponse,
};

use crate::{
    cgroup::Cgroup,
    child::namespaces::Kinds,
    disks::Disk,
    error::{Doing, Error, Result},
    limits,
    reaper::End,
    streams::Streams,
    timeline::{now, span},
};

pub(crate) mod birth;
pub(crate) mod link;
mod listing;
pub(crate) mod stdio;

use link::Link;

/// A container: its cgroup, its first process, and those added to it. About
/// the lock, see [`crate::reaper::Reaper`].
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) cgroup: Cgroup,
    /// Namespaces that differ from the agent's own.
    pub(crate) kinds: Kinds,
    pub(crate) init: Arc<Process>,
    /// What its root file system is on, if not on the share.
    pub(crate) disk: Option<Disk>,
    /// It has no programs.
    pause: bool,
    added: Mutex<HashMap<String, Slot>>,
    /// Device rules that are not in force yet.
    unguarded: Mutex<Vec<DeviceRule>>,
}

/// An id is taken while its process is still being made.
#[derive(Debug)]
enum Slot {
    Reserved,
    Made(Arc<Process>),
}

impl Container {
    fn new(id: &str, cgroup: Cgroup, kinds: Kinds, init: Process, spec: &ContainerSpec) -> Self {
        let guarded = cgroup.is_guarded();
        Self {
            id: id.to_owned(),
            cgroup,
            kinds,
            init: Arc::new(init),
            disk: None,
            pause: spec.pause,
            added: Mutex::default(),
            unguarded: Mutex::new(match guarded {
                true => Vec::new(),
                false => spec.cgroup.device_rules.clone(),
            }),
        }
    }

    /// Puts the device rules in force, which must be before any program runs
    /// in the container. That takes the kernel's verifier and compiler, so it
    /// is not part of the making: see [`crate::sandbox::Sandbox::complete`].
    /// Tells whether there was anything to do.
    pub(crate) fn guard(&self) -> Result<bool> {
        let mut rules = self
            .unguarded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if rules.is_empty() {
            return Ok(false);
        }
        self.cgroup.guard(&rules)?;
        rules.clear();
        Ok(true)
    }

    /// Waits until the kernel has killed one of its processes for want of memory,
    /// or its init has ended: whether it was the former.
    pub(crate) async fn out_of_memory(&self) -> Result<bool> {
        let mut end = self.init.end.clone();
        tokio::select! {
            killed = self.cgroup.out_of_memory() => killed.map(|()| true),
            _ = end.reached() => Ok(self.cgroup.oom_killed()),
        }
    }

    /// The process of an exec id; the empty one is the container's first.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        match self.added().get(exec) {
            Some(Slot::Made(process)) => Ok(Arc::clone(process)),
            _ => Err(self.no_process(exec)),
        }
    }

    /// Takes an exec id for a process that is about to be made, which is to
    /// execute `program`.
    pub(crate) fn reserve(&self, exec: &str, program: &str) -> Result<()> {
        if self.pause {
            let why = "executable file not found in $PATH: a pod's sandbox container has no \
                       programs";
            return Err(Error::Program(format!("exec: {program:?}: {why}")));
        }
        let mut added = self.added();
        if added.contains_key(exec) {
            return Err(Error::ProcessExists {
                container: self.id.clone(),
                exec: exec.to_owned(),
            });
        }
        if added.len() == limits::PROCESSES {
            return Err(Error::Limit {
                what: "processes of a container",
                count: added.len() + 1,
                most: limits::PROCESSES,
            });
        }
        added.insert(exec.to_owned(), Slot::Reserved);
        Ok(())
    }

    /// Puts the process where its id was reserved, or frees the id.
    pub(crate) fn settle(&self, exec: &str, process: Option<Arc<Process>>) {
        let mut added = self.added();
        match process {
            Some(process) => added.insert(exec.to_owned(), Slot::Made(process)),
            None => added.remove(exec),
        };
    }

    /// Forgets an ended process.
    pub(crate) fn forget(&self, exec: &str) -> Result<()> {
        let process = self.process(exec)?;
        if Arc::ptr_eq(&process, &self.init) {
            return Err(Error::invalid("exec id", "must not be empty"));
        }
        if process.end.known().is_none() {
            return Err(Error::Running);
        }
        self.settle(exec, None);
        Ok(())
    }

    /// Sends a signal to every process.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.cgroup.kill();
        }
        for pid in self.cgroup.processes()? {
            // One that has ended meanwhile needs no signal.
            let Ok(pidfd) = casemate_linux::process::pidfd_open(pid) else {
                continue;
            };
            match signal_pidfd(pidfd.as_fd(), signal) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(error).doing(|| format!("signal process {pid}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All processes, the first one first.
    pub(crate) fn list(&self) -> Result<ListProcessesResponse> {
        let mut known = HashMap::from([(self.init.pid, String::new())]);
        for (exec, slot) in self.added().iter() {
            if let Slot::Made(process) = slot {
                known.insert(process.pid, exec.clone());
            }
        }
        let mut pids = self.cgroup.processes()?;
        pids.sort_unstable_by_key(|&pid| (pid != self.init.pid, pid));
        // One that has ended meanwhile is left out.
        let processes = pids.into_iter().filter_map(|pid| {
            let mut info = listing::process(pid)?;
            info.exec_id = known.remove(&pid);
            Some(info)
        });
        Ok(ListProcessesResponse {
            processes: processes.collect(),
            ..Default::default()
        })
    }

    fn no_process(&self, exec: &str) -> Error {
        Error::NoProcess {
            container: self.id.clone(),
            exec: exec.to_owned(),
        }
    }

    fn added(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that the host has asked for.
#[derive(Debug)]
pub(crate) struct Process {
    /// In the guest's initial PID namespace.
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) end: End,
    pub(crate) streams: Streams,
    /// Taken by the start. About the lock, see [`crate::reaper::Reaper`].
    link: Mutex<Option<Link>>,
    terminal: Option<OwnedFd>,
}

impl Process {
    /// Has it execute its program.
    pub(crate) async fn start(&self) -> Result<Span> {
        let began = now();
        let link = self
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let link = link.ok_or(Error::Started)?;
        if self.end.known().is_some() {
            return Err(Error::Finished);
        }
        link.start().await?;
        Ok(span("exec", began, now()))
    }

    /// Waits for its end. `container` is where the kernel counts what it had
    /// to kill.
    pub(crate) async fn wait(&self, container: &Container) -> WaitProcessResponse {
        let ended = self.end.clone().reached().await;
        WaitProcessResponse {
            exit_status: ended.exit.shell_status(),
            exited_at_ns: ended.at_ns,
            oom_killed: container.cgroup.oom_killed(),
            ..Default::default()
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        if self.end.known().is_some() {
            return Err(Error::Finished);
        }
        match signal_pidfd(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(Error::Finished),
            other => other.doing(|| format!("send signal {signal}")),
        }
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let master = self.terminal.as_ref().ok_or(Error::NoTerminal)?;
        terminal::resize(master.as_fd(), columns, rows).doing(|| "resize the terminal".into())
    }
}
