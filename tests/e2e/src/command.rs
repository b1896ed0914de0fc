//! A program that is run with a time limit and whose words are kept for the
//! report of a failure.

mod collector;
mod finished;
mod running;
mod typist;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::PathBuf;
use std::process::{ChildStdin, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host::Host;
use crate::runtime::in_search_path;
use collector::Collector;
pub use finished::{Exit, Finished};
pub use running::Running;
pub use typist::{Size, Typist};

/// The time a command has unless it is given another.
const LIMIT: Duration = Duration::from_secs(60);

enum Input {
    Nothing,
    Bytes(Vec<u8>),
    Pipe,
}

/// A program to run, with its arguments and surroundings.
#[must_use]
pub struct Command<'h> {
    host: &'h Host,
    argv: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: PathBuf,
    input: Input,
    stdout_unread: bool,
    limit: Duration,
}

impl<'h> Command<'h> {
    pub(crate) fn new(host: &'h Host, program: impl AsRef<OsStr>) -> Command<'h> {
        Command {
            host,
            argv: vec![program.as_ref().to_owned()],
            environment: host.environment(),
            folder: host.dir.clone(),
            input: Input::Nothing,
            stdout_unread: false,
            limit: LIMIT,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.argv.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        let arguments = arguments.into_iter().map(|a| a.as_ref().to_owned());
        self.argv.extend(arguments);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// The folder in which it runs.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// What it reads; without this, nothing.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Leaves the writing of its input to the scenario: [`Running::stdin`].
    pub fn input_by_hand(mut self) -> Self {
        self.input = Input::Pipe;
        self
    }

    /// Leaves the reading of its output to the scenario: [`Running::stdout`].
    pub fn output_by_hand(mut self) -> Self {
        self.stdout_unread = true;
        self
    }

    /// The time it has.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Finished> {
        self.start()?.finish()
    }

    /// Starts it.
    pub fn start(self) -> Result<Running<'h>> {
        let program = self.program()?;
        let piped = matches!(self.input, Input::Bytes(_) | Input::Pipe);
        let since = Instant::now();
        let mut child = std::process::Command::new(program)
            .args(&self.argv[1..])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(if piped { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.line()))?;
        let mut stdin = child.stdin.take();
        if let Input::Bytes(bytes) = &self.input {
            feed(stdin.take(), bytes.clone());
        }
        let mut stdout = child.stdout.take();
        let collected = if self.stdout_unread {
            None
        } else {
            stdout.take()
        };
        Ok(Running {
            host: self.host,
            pid: child.id() as i32,
            stdin,
            stdout,
            line: self.line(),
            since,
            limit: self.limit,
            out: collected.map(Collector::start),
            err: child.stderr.take().map(Collector::start),
        })
    }

    /// Starts it with a terminal of its own, for somebody who types: it leads
    /// a session with that terminal and ignores no signal, as the programs of
    /// a login do. setsid(1) and env(1) do it, which become the program.
    pub fn on_terminal(self, size: Size) -> Result<Typist<'h>> {
        let setsid = in_search_path("setsid").context("setsid: no such program")?;
        let mut child = std::process::Command::new(setsid);
        child
            .args(["--ctty", "env", "--default-signal"])
            .arg(self.program()?)
            .args(&self.argv[1..])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("TERM", "xterm")
            .current_dir(&self.folder);
        Typist::start(self.host, self.line(), child, size, self.limit)
    }

    /// The program's path. The standard library waits by itself for a child
    /// whose exec fails, which only the reaper may do: so it must not fail.
    fn program(&self) -> Result<PathBuf> {
        let program = &self.argv[0];
        let path = PathBuf::from(program);
        if path.is_absolute() && path.exists() {
            return Ok(path);
        }
        program
            .to_str()
            .and_then(in_search_path)
            .with_context(|| format!("{}: no such program", program.to_string_lossy()))
    }

    fn line(&self) -> String {
        let words: Vec<String> = self.argv.iter().map(|word| quoted(word)).collect();
        words.join(" ")
    }
}

/// A word as one would type it.
fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || "'\"$;&|<>".contains(c)) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    text.into_owned()
}

/// Writes in a thread of its own: a pipe holds less than what is written.
fn feed(stdin: Option<ChildStdin>, bytes: Vec<u8>) {
    if let Some(mut stdin) = stdin {
        // A command that ends without reading everything is no error here.
        thread::spawn(move || stdin.write_all(&bytes));
    }
}
