//! A command that was started, while it runs.

use std::process::{ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::collector::Collector;
use super::finished::{Exit, Finished, shown};
use crate::host::Host;
use crate::reaper;

/// A command that was started.
pub struct Running<'h> {
    pub(super) host: &'h Host,
    /// Its process id.
    pub pid: i32,
    /// Where to write its input, if that was wanted; dropping it ends the input.
    pub stdin: Option<ChildStdin>,
    /// Its output, if the scenario reads it by hand.
    pub stdout: Option<ChildStdout>,
    pub(super) line: String,
    pub(super) since: Instant,
    pub(super) limit: Duration,
    pub(super) out: Option<Collector>,
    pub(super) err: Option<Collector>,
}

impl Running<'_> {
    /// Waits for its end and for the end of its output.
    pub fn finish(mut self) -> Result<Finished> {
        drop(self.stdin.take());
        let exit = self.exit()?;
        let took = self.since.elapsed();
        self.output_ended()?;
        let finished = Finished {
            line: self.line.clone(),
            exit,
            took,
            stdout: self.written(),
            stderr: self.complained(),
        };
        self.host.note(finished.to_string());
        Ok(finished)
    }

    /// Waits for the end of the process alone: others may still write to what
    /// it was given as output.
    pub fn exit(&self) -> Result<Exit> {
        let left = self.limit.saturating_sub(self.since.elapsed());
        self.exit_within(left)
    }

    /// Waits that long for the end of the process.
    pub fn exit_within(&self, limit: Duration) -> Result<Exit> {
        match reaper::exit_of(self.pid, self.since, limit) {
            Some(exit) => Ok(exit),
            None => bail!("{}", self.story(&format!("still runs after {limit:?}"))),
        }
    }

    /// Waits for the end of stdout and stderr. What still holds them once the
    /// processes they belong to have ended would make every client wait.
    pub fn output_ended(&mut self) -> Result<()> {
        let unread = self.stdout.take().map(Collector::start);
        self.out = self.out.take().or(unread);
        for stream in [&self.out, &self.err].into_iter().flatten() {
            if let Err(holders) = stream.ended_within(Duration::from_secs(5)) {
                bail!(
                    "{}",
                    self.story(&format!("its output is held open by {holders}"))
                );
            }
        }
        Ok(())
    }

    /// What came on stdout so far.
    pub fn written(&self) -> Vec<u8> {
        self.out.as_ref().map(Collector::bytes).unwrap_or_default()
    }

    /// What came on stderr so far.
    pub fn complained(&self) -> Vec<u8> {
        self.err.as_ref().map(Collector::bytes).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("{signal} to {}", self.line))
    }

    fn story(&self, what: &str) -> String {
        let (out, err) = (self.written(), self.complained());
        let story = format!(
            "$ {}: {what}{}{}",
            self.line,
            shown("stdout", &out),
            shown("stderr", &err)
        );
        self.host.note(story.clone());
        story
    }
}
