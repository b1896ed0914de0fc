//! A program that is run with a time limit and whose words are kept for the
//! report of a failure.

mod collector;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Host;
use crate::reaper;
use crate::runtime::in_search_path;
use collector::Collector;

/// The time a command has unless it is given another.
const LIMIT: Duration = Duration::from_secs(60);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// The code a shell makes of it.
    pub fn shell(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(number) => 128 + number,
        }
    }
}

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
        self.environment.push((name.into(), value.as_ref().to_owned()));
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
        let collected = if self.stdout_unread { None } else { stdout.take() };
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
            .with_context(|| format!("{}: no such program", program.display()))
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

/// A command that was started.
pub struct Running<'h> {
    host: &'h Host,
    /// Its process id.
    pub pid: i32,
    /// Where to write its input, if that was wanted; dropping it ends the input.
    pub stdin: Option<ChildStdin>,
    /// Its output, if the scenario reads it by hand.
    pub stdout: Option<ChildStdout>,
    line: String,
    since: Instant,
    limit: Duration,
    out: Option<Collector>,
    err: Option<Collector>,
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
                bail!("{}", self.story(&format!("its output is held open by {holders}")));
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
        let story = format!("$ {}: {what}{}{}", self.line, shown("stdout", &out), shown("stderr", &err));
        self.host.note(story.clone());
        story
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The command as one would type it.
    pub line: String,
    /// How it ended.
    pub exit: Exit,
    /// How long it ran.
    pub took: Duration,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Demands exit code 0.
    pub fn ok(self) -> Result<Finished> {
        self.exits(0)
    }

    /// Demands this exit code.
    pub fn exits(self, code: i32) -> Result<Finished> {
        if self.exit.shell() == code {
            return Ok(self);
        }
        bail!("exit code {code} was expected\n{self}");
    }

    /// Its output as text, without the line end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Its errors as text, without the line end.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$ {}: {:?} after {:.2?}", self.line, self.exit, self.took)?;
        f.write_str(&shown("stdout", &self.stdout))?;
        f.write_str(&shown("stderr", &self.stderr))
    }
}

/// The beginning of a stream, indented, for a report.
fn shown(name: &str, bytes: &[u8]) -> String {
    const MOST: usize = 3000;
    if bytes.is_empty() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]);
    let more = bytes.len().saturating_sub(MOST);
    let tail = if more > 0 { format!("\n    … and {more} bytes") } else { String::new() };
    let text = text.trim_end().replace('\n', "\n    ");
    format!("\n  {name}:\n    {text}{tail}")
}
