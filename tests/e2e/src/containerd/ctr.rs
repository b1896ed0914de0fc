//! The client that comes with containerd.

use anyhow::{Context, Result};

use super::{Containerd, Events};
use crate::command::{Command, Finished};
use crate::images::BUSYBOX;

/// `ctr` in one namespace of an engine. Its containers are of the scenario's
/// runtime, and in the scenario's cgroup.
pub struct Ctr<'e, 'h> {
    pub(super) engine: &'e Containerd<'h>,
    namespace: String,
}

impl<'e, 'h> Ctr<'e, 'h> {
    pub(super) fn new(engine: &'e Containerd<'h>, namespace: &str) -> Ctr<'e, 'h> {
        let namespace = namespace.to_owned();
        Ctr { engine, namespace }
    }

    /// Any command of the client.
    pub fn command<A: AsRef<str>>(&self, arguments: impl IntoIterator<Item = A>) -> Command<'h> {
        self.engine
            .beside(self.engine.program("ctr"))
            .arg("--address")
            .arg(self.engine.socket())
            .args(["--namespace", &self.namespace])
            .args(arguments.into_iter().map(|a| a.as_ref().to_owned()))
    }

    /// Runs a command of the client that must succeed.
    pub fn does<A: AsRef<str>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Finished> {
        self.command(arguments).run()?.ok()
    }

    /// `ctr run` of a new container from the BusyBox image.
    pub fn run(&self, flags: &[&str], program: &[&str]) -> Command<'h> {
        self.run_as(&self.engine.host.new_id(), flags, program)
    }

    /// `ctr run` of a container with this id from the BusyBox image.
    pub fn run_as(&self, id: &str, flags: &[&str], program: &[&str]) -> Command<'h> {
        self.run_from(BUSYBOX, id, flags, program)
    }

    /// `ctr run` from an image, or from a folder (with flag `--rootfs`).
    pub fn run_from(&self, root: &str, id: &str, flags: &[&str], program: &[&str]) -> Command<'h> {
        self.command(["run", "--runtime", &self.engine.runtime(), "--cgroup"])
            .arg(format!("/{}/{id}", self.engine.host.cgroup))
            .args(flags)
            .args([root, id])
            .args(program)
    }

    /// Runs a container in the background and gives its id.
    pub fn run_detached(&self, flags: &[&str], program: &[&str]) -> Result<String> {
        let id = self.engine.host.new_id();
        let flags = [&["--detach", "--null-io"], flags].concat();
        self.run_as(&id, &flags, program).run()?.ok()?;
        Ok(id)
    }

    /// `ctr task exec` with an exec id that was not there before.
    pub fn exec(&self, id: &str, flags: &[&str], program: &[&str]) -> Command<'h> {
        let exec = self.engine.host.new_id();
        self.command(["tasks", "exec", "--exec-id", &exec])
            .args(flags)
            .arg(id)
            .args(program)
    }

    /// The status of a task: `RUNNING`, `PAUSED`, `STOPPED`; none if there is
    /// no such task.
    pub fn status(&self, id: &str) -> Result<Option<String>> {
        Ok(self.listed(id)?.map(|(_, status)| status))
    }

    /// The process that stands for the container on the host.
    pub fn pid(&self, id: &str) -> Result<i32> {
        let (pid, _) = self.listed(id)?.with_context(|| format!("no task {id}"))?;
        Ok(pid)
    }

    fn listed(&self, id: &str) -> Result<Option<(i32, String)>> {
        let listed = self.does(["tasks", "ls"])?.text();
        for line in listed.lines() {
            if let [task, pid, status] = line.split_whitespace().collect::<Vec<_>>()[..]
                && task == id
            {
                return Ok(Some((pid.parse()?, status.to_owned())));
            }
        }
        Ok(None)
    }

    /// Ends a container, if it runs, and removes task, container and snapshot.
    pub fn remove(&self, id: &str) -> Result<()> {
        // What is deleted has ended by signal 9, which the client reports.
        if self.status(id)?.is_some() {
            let delete = self.command(["tasks", "delete", "--force", id]).run()?;
            if self.status(id)?.is_some() {
                anyhow::bail!("the task is still there\n{delete}");
            }
        }
        self.does(["containers", "delete", id])?;
        Ok(())
    }

    /// Listens to the engine's events.
    pub fn events(&self) -> Result<Events<'h>> {
        Events::listen(self)
    }
}
