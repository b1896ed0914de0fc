//! A container driven by the OCI command line, as conmon drives one: `create`
//! inherits the container's streams, its process is reaped by the caller.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bundle::Bundle;
use crate::command::{Command, Exit, Finished, Running};
use crate::host::Host;
use crate::reaper;

/// A created container.
pub struct Container<'h> {
    host: &'h Host,
    /// Its id.
    pub id: String,
    /// The process that stands for it on the host: what `create` wrote into
    /// the pid file.
    pub pid: i32,
    since: Instant,
    streams: Running<'h>,
}

impl<'h> Container<'h> {
    /// Creates a container; its input is empty.
    pub fn create(host: &'h Host, bundle: &Bundle) -> Result<Container<'h>> {
        Container::create_with(host, bundle, |command| command)
    }

    /// Creates a container with a changed `create` command, for example with
    /// an input, another limit or one more flag.
    pub fn create_with(
        host: &'h Host,
        bundle: &Bundle,
        change: impl FnOnce(Command<'h>) -> Command<'h>,
    ) -> Result<Container<'h>> {
        let id = host.new_id();
        let pid_file = bundle.dir.join(format!("{id}.pid"));
        let since = Instant::now();
        let streams = change(create_flags(host, bundle, &id)).arg(&id).start()?;
        let exit = streams.exit()?;
        if exit != Exit::Code(0) {
            bail!("create has failed\n{}", streams.finish()?);
        }
        let text = fs::read_to_string(&pid_file).with_context(|| pid_file.display().to_string())?;
        let pid = text
            .parse()
            .with_context(|| format!("the pid file holds {text:?}"))?;
        host.note(format!(
            "$ create {id}: pid {pid} after {:.2?}",
            since.elapsed()
        ));
        Ok(Container {
            host,
            id,
            pid,
            since,
            streams,
        })
    }

    /// Creates and starts a container.
    pub fn run(host: &'h Host, bundle: &Bundle) -> Result<Container<'h>> {
        let container = Container::create(host, bundle)?;
        container.start()?;
        Ok(container)
    }

    /// Lets its process go.
    pub fn start(&self) -> Result<()> {
        self.host.oci(&["start", &self.id]).run()?.ok()?;
        Ok(())
    }

    /// What `state` says about it.
    pub fn state(&self) -> Result<Value> {
        let told = self.host.oci(&["state", &self.id]).run()?.ok()?;
        serde_json::from_slice(&told.stdout).context("the JSON of `state`")
    }

    /// The status in what `state` says.
    pub fn status(&self) -> Result<String> {
        let state = self.state()?;
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Calls `kill` with a signal by name or number.
    pub fn kill(&self, signal: &str) -> Result<Finished> {
        self.host.oci(&["kill", &self.id, signal]).run()
    }

    /// Sends a signal to the process that stands for it.
    pub fn kill_process(&self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        nix::sys::signal::kill(pid, Signal::SIGKILL).context("kill the container's process")
    }

    /// Waits for its end as its parent does.
    pub fn wait(&self, limit: Duration) -> Result<Exit> {
        reaper::exit_of(self.pid, self.since, limit)
            .with_context(|| format!("container {} still runs after {limit:?}", self.id))
    }

    /// Deletes it after its end.
    pub fn delete(&self) -> Result<()> {
        self.host.oci(&["delete", &self.id]).run()?.ok()?;
        Ok(())
    }

    /// Deletes it whatever it does.
    pub fn delete_force(&self) -> Result<()> {
        self.host
            .oci(&["delete", "--force", &self.id])
            .run()?
            .ok()?;
        Ok(())
    }

    /// Its streams.
    pub fn streams(&mut self) -> &mut Running<'h> {
        &mut self.streams
    }

    /// Waits for its end and demands an exit code; deletes it and gives what it
    /// wrote.
    pub fn end(mut self, code: i32) -> Result<String> {
        let exit = self.wait(Duration::from_secs(60))?;
        self.streams.output_ended()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (out, err) = (
            text(self.streams.written()),
            text(self.streams.complained()),
        );
        self.host.note(format!(
            "container {}: {exit:?}\n  stdout: {out}\n  stderr: {err}",
            self.id
        ));
        ensure!(
            exit.shell() == code,
            "{exit:?}, and exit code {code} was expected"
        );
        self.delete()?;
        Ok(out)
    }
}

/// `create` with a pid file, which is where a client looks for the process.
pub fn create_command<'h>(host: &'h Host, bundle: &Bundle, id: &str) -> Command<'h> {
    create_flags(host, bundle, id).arg(id)
}

fn create_flags<'h>(host: &'h Host, bundle: &Bundle, id: &str) -> Command<'h> {
    let pid_file = bundle.dir.join(format!("{id}.pid"));
    host.oci(&["create", "--bundle", bundle.path(), "--pid-file"])
        .arg(pid_file)
}
