//! Requests that change no life: about one process or one container.

use std::collections::BTreeMap;

use super::{Owner, answer};
use crate::{
    cgroup::{Cgroup, limits},
    container::{ExitStatus, Phase, Reply},
    error::Error,
    handle::{CgroupFiles, GuestProcess, News, ProcessState},
    identifier::Id,
    key::Key,
    policy::Operation,
    spec,
    state::Status,
    tasks,
};

impl Owner {
    pub(super) fn wait(&mut self, key: &Key, reply: Reply<ExitStatus>) {
        match self.process(key) {
            None => answer(reply, Err(Error::NotFound)),
            Some(process) => match process.phase {
                Phase::Stopped(exit) => answer(reply, Ok(exit)),
                _ => process.waiters.push(reply),
            },
        }
    }

    pub(super) fn signal(&mut self, key: &Key, signal: u32, all: bool, reply: Reply<()>) {
        match self
            .permit(key, Operation::Signal)
            .and_then(|()| self.agent())
        {
            Ok(agent) => tasks::spawn_signal(key, agent, signal, all, reply),
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn resize(&mut self, key: &Key, columns: u32, rows: u32, reply: Reply<()>) {
        // While the guest makes the process, the size is kept for it.
        if let Some(process) = self.process(key)
            && (process.phase == Phase::Creating
                || process.waiting.is_some()
                || key.exec.is_some() && process.phase == Phase::Starting)
        {
            process.size = Some((columns, rows));
            return answer(reply, Ok(()));
        }
        match self
            .permit(key, Operation::Resize)
            .and_then(|()| self.agent())
        {
            Ok(agent) => tasks::spawn_resize(key, agent, columns, rows, reply),
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn close_input(&mut self, key: &Key) -> Result<(), Error> {
        self.process(key).ok_or(Error::NotFound)?.input = None;
        Ok(())
    }

    pub(super) fn state(&mut self, key: &Key) -> Result<ProcessState, Error> {
        let container = self
            .containers
            .get_mut(&key.container)
            .ok_or(Error::NotFound)?;
        let bundle = container.bundle.clone();
        let status = container.status(key.exec.as_ref());
        let process = container
            .process(key.exec.as_ref())
            .ok_or(Error::NotFound)?;
        Ok(ProcessState {
            bundle,
            pid: process.pid,
            status: status.ok_or(Error::NotFound)?,
            terminal: process.terminal,
            exit: match process.phase {
                Phase::Stopped(exit) => Some(exit),
                _ => None,
            },
        })
    }

    pub(super) fn statuses(&self) -> BTreeMap<Id, Status> {
        let statuses = self.containers.iter().filter_map(|(id, container)| {
            let status = container.status(None)?;
            Some((id.clone(), status))
        });
        statuses.collect()
    }

    pub(super) fn processes(&mut self, container: Id, reply: Reply<Vec<GuestProcess>>) {
        let key = Key::init(container);
        match self.permitted(&key, Operation::Signal) {
            Ok((container, agent)) => {
                let execs = container.execs.iter();
                let mut host_pids: BTreeMap<String, Option<u32>> = execs
                    .map(|(exec, process)| (exec.to_string(), process.stand_in_pid()))
                    .collect();
                host_pids.insert(String::new(), Some(container.init.pid));
                tasks::spawn_list(&key, agent, host_pids, reply);
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn freeze(&mut self, container: Id, frozen: bool, reply: Reply<()>) {
        let key = Key::init(container);
        let operation = if frozen {
            Operation::Pause
        } else {
            Operation::Resume
        };
        match self.permitted(&key, operation) {
            Ok((_, agent)) => {
                tasks::spawn_freeze(key, agent, frozen, reply, self.events.clone());
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn frozen(
        &mut self,
        key: Key,
        frozen: bool,
        result: Result<(), Error>,
        reply: Reply<()>,
    ) {
        if result.is_ok()
            && let Some(container) = self.containers.get_mut(&key.container)
        {
            container.paused = frozen;
            if !frozen {
                self.release_held(&key.container);
            }
            self.store(&key);
            let id = key.container;
            self.options.client.tell(match frozen {
                true => News::Paused(id),
                false => News::Resumed(id),
            });
        }
        answer(reply, result);
    }

    pub(super) fn update(&mut self, container: Id, resources: &[u8], reply: Reply<()>) {
        let key = Key::init(container);
        let memory_mib = self.options.config.machine.memory_mib;
        let decide = |owner: &mut Self| {
            let (container, agent) = owner.permitted(&key, Operation::Update)?;
            let update = spec::update(resources)?;
            if let Some(path) = &container.host.cgroups_path {
                let group = Cgroup::locate(path.as_ref())?;
                let mut limits = limits::standing(&update.resources, memory_mib);
                limits.extend(limits::bandwidth(&update.resources));
                group.limit(&limits)?;
            }
            Ok((agent, update))
        };
        match decide(self) {
            Ok((agent, update)) => {
                for warning in update.warnings {
                    tracing::warn!(container = %key, "{warning}");
                }
                tasks::spawn_update(&key, agent, update.settings, reply);
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn stats(&mut self, container: Id, reply: Reply<CgroupFiles>) {
        let key = Key::init(container);
        match self.permitted(&key, Operation::Signal) {
            Ok((_, agent)) => tasks::spawn_stats(&key, agent, reply),
            Err(error) => answer(reply, Err(error)),
        }
    }
}
