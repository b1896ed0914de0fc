//! The two processes that `create` leaves behind: stand-in and monitor. Both
//! are this binary under a hidden verb.

use std::{
    fs::{File, OpenOptions},
    io::{self, PipeReader, Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use casemate_config::Config;
use casemate_linux::{
    descriptor, disposition,
    process::{self, Birth, Child, Namespaces},
};

use crate::client::Place;

/// The monitor's log in the sandbox's directory.
const MONITOR_LOG: &str = "monitor.log";

/// What a child writes on its readiness pipe when all is well.
pub const READY: &[u8] = b"ready\n";

/// Longest message of a child that is not ready.
const MAX_MESSAGE: usize = 4096;

/// A stand-in that has been made; see [`casemate_sandbox::stand_in`].
pub struct StandIn {
    child: Child,
    control: UnixStream,
    readiness: UnixStream,
}

/// What a stand-in is started with.
pub struct StandInStart<'a> {
    pub place: &'a Place,
    /// Its network namespace; a new one without.
    pub netns: Option<&'a Path>,
    /// The terminal whose size it follows.
    pub terminal: Option<OwnedFd>,
    /// What it stands for: `docker top` and people look for that.
    pub command: &'a [String],
}

/// How much of a command is shown: words, and characters of each.
const SHOWN_WORDS: usize = 32;
const SHOWN_CHARACTERS: usize = 256;

fn shown(word: &str) -> String {
    let shown = word.chars().take(SHOWN_CHARACTERS);
    shown.filter(|character| *character != '\0').collect()
}

/// What a stand-in hears when its caller is done with it: from then on it
/// outlives the caller.
pub const RELEASED: u8 = b'r';

impl StandIn {
    /// Makes the stand-in of a container: in namespaces of its own, so that who
    /// enters them sees nothing of the host, and in the network namespace that
    /// `netns` names, or else in a new one.
    ///
    /// # Errors
    /// EPERM without the right to make namespaces.
    pub fn spawn(start: StandInStart<'_>) -> Result<Self> {
        let StandInStart {
            place,
            netns,
            terminal,
            command,
        } = start;
        let mut line = vec![
            "casemate".into(),
            "stand-in".into(),
            "--id".into(),
            place.id.to_string(),
        ];
        let mut namespaces = Namespaces::CLONE_NEWPID
            | Namespaces::CLONE_NEWNS
            | Namespaces::CLONE_NEWIPC
            | Namespaces::CLONE_NEWUTS;
        match netns {
            Some(path) => line.extend(["--netns".into(), path.to_string_lossy().into_owned()]),
            None => namespaces |= Namespaces::CLONE_NEWNET,
        }
        if terminal.is_some() {
            line.push("--terminal".into());
        }
        line.push("--".into());
        line.extend(command.iter().take(SHOWN_WORDS).map(|word| shown(word)));
        let (control, theirs) = UnixStream::pair().context("socket pair")?;
        let (readiness, writer) = UnixStream::pair().context("socket pair")?;
        let birth = Birth {
            namespaces: Some(namespaces),
            cgroup: None,
        };
        let stdio = terminal.as_ref().map(AsFd::as_fd);
        let child = process::spawn(birth, || {
            let error = become_verb(&line, [stdio; 3], &[theirs.as_fd(), writer.as_fd()]);
            let _ = writeln!(&writer, "{error}");
            127
        })
        .context("stand-in: new namespaces")?;
        Ok(Self {
            child,
            control,
            readiness,
        })
    }

    /// Process id on the host.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its network namespace.
    pub fn netns(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid()))
    }

    /// The monitor's end of the control socket.
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Waits until it has shut itself in.
    ///
    /// # Errors
    /// Its own words.
    pub fn await_readiness(&self) -> Result<()> {
        await_ready(&self.readiness).context("stand-in")
    }

    /// The process, to be waited for; the monitor alone holds the control
    /// socket from now on, and the end of this process is nothing to it.
    pub fn release(mut self) -> Child {
        // One that has ended already needs no word.
        let _ = self.readiness.write_all(&[RELEASED]);
        self.child
    }

    /// Ends it and waits for that.
    pub fn end(self) {
        let Self { child, control, .. } = self;
        drop(control);
        end(&child);
    }
}

/// What a monitor is started with.
pub struct MonitorStart<'a> {
    pub place: &'a Place,
    /// Directory of the sandbox.
    pub sandbox: &'a Path,
    pub netns: PathBuf,
    pub hostname: String,
    pub cgroup: Option<String>,
    pub config: &'a Config,
    pub debug: bool,
    pub begun_ns: u64,
}

/// A monitor that has been made.
pub struct Monitor {
    child: Child,
    readiness: PipeReader,
}

impl Monitor {
    /// Makes the monitor of a sandbox: detached from everything of ours but the
    /// mount namespace it starts from.
    ///
    /// # Errors
    /// When the process or its log cannot be made.
    pub fn spawn(start: &MonitorStart<'_>) -> Result<Self> {
        let directory = start.sandbox;
        let log_path = directory.join(MONITOR_LOG);
        let mut options = OpenOptions::new();
        let log = options.create(true).append(true).open(&log_path);
        let log = log.with_context(|| log_path.display().to_string())?;
        let config = as_file(start.config)?;
        let (readiness, writer) = io::pipe().context("pipe")?;
        let mut line = vec!["casemate".to_owned()];
        if start.debug {
            line.push("--debug".into());
        }
        line.extend(["monitor".into(), "--id".into(), start.place.id.to_string()]);
        line.extend([
            "--directory".into(),
            directory.to_string_lossy().into_owned(),
        ]);
        let root = start.place.root().to_string_lossy().into_owned();
        line.extend(["--root".into(), root]);
        line.extend(["--netns".into(), start.netns.to_string_lossy().into_owned()]);
        line.extend(["--hostname".into(), start.hostname.clone()]);
        if let Some(path) = &start.cgroup {
            line.extend(["--cgroup".into(), path.clone()]);
        }
        line.extend(["--begun-ns".into(), start.begun_ns.to_string()]);
        let stdio = [None, None, Some(log.as_fd())];
        let child = process::spawn(Birth::default(), || {
            let _ = nix::unistd::setsid();
            let error = become_verb(&line, stdio, &[config.as_fd(), writer.as_fd()]);
            let _ = writeln!(&writer, "{error}");
            127
        })
        .context("monitor")?;
        Ok(Self { child, readiness })
    }

    /// Waits until it listens.
    ///
    /// # Errors
    /// Its own words.
    pub fn await_readiness(&self) -> Result<()> {
        await_ready(&self.readiness).context("monitor")
    }

    /// Ends it and waits for that; its children die with it.
    pub fn end(self) {
        end(&self.child);
    }
}

fn end(child: &Child) {
    if child.signal(libc::SIGKILL).is_ok() {
        // Reaped now, whatever it ended with.
        let _ = child.wait();
    }
}

/// Waits for the child's word: [`READY`], or the reason why not.
fn await_ready(mut readiness: impl Read) -> Result<()> {
    let mut message = Vec::new();
    let mut byte = [0];
    while message.len() < MAX_MESSAGE && message.last() != Some(&b'\n') {
        match readiness.read(&mut byte).context("readiness")? {
            0 => break,
            _ => message.push(byte[0]),
        }
    }
    if message == READY {
        return Ok(());
    }
    match String::from_utf8_lossy(&message).trim() {
        "" => bail!("ended before it was ready"),
        text => bail!("{text}"),
    }
}

/// The configuration as an anonymous file.
fn as_file(config: &Config) -> Result<File> {
    let mut file = descriptor::memory_file("casemate-config").context("configuration")?;
    serde_json::to_writer(&file, config).context("configuration")?;
    file.rewind().context("configuration")?;
    Ok(file)
}

/// In a child: becomes this binary under another verb, with `descriptors` at 3
/// and up and nothing else inherited. Returns only when that has failed.
fn become_verb(
    line: &[String],
    stdio: [Option<BorrowedFd<'_>>; 3],
    descriptors: &[BorrowedFd<'_>],
) -> io::Error {
    let attempt = || {
        disposition::reset_all();
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        nix::unistd::dup2_stdin(stdio[0].unwrap_or(null.as_fd()))?;
        nix::unistd::dup2_stdout(stdio[1].unwrap_or(null.as_fd()))?;
        nix::unistd::dup2_stderr(stdio[2].unwrap_or(null.as_fd()))?;
        descriptor::arrange_for_exec(descriptors)?;
        let line: Vec<_> = line.iter().map(|word| word.clone().into_bytes()).collect();
        // Clients call some verbs without PATH: nothing here depends on it, and
        // nothing of the caller's environment is the sandbox's business.
        process::exec(b"/proc/self/exe", &line, &[])
    };
    match attempt() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}
