//! The two processes on the host that stand for a container and its sandbox,
//! as who makes them sees them: stand-in and monitor. Both are this binary
//! under a hidden verb.

use std::{
    fs::{File, OpenOptions},
    io::{self, PipeReader, Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use casemate_config::Config;
use casemate_hypervisor::Size;
use casemate_linux::{
    descriptor,
    process::{Birth, Child, Namespaces},
    program::{self, Start},
};
use nix::libc;
use tokio::io::AsyncReadExt;

use crate::{identifier::Id, stand_in, timeline::now_ns};

/// The monitor's log in the sandbox's directory.
const MONITOR_LOG: &str = "monitor.log";

/// What a child writes on its readiness pipe when all is well.
pub const READY: &[u8] = b"ready\n";

/// Longest message of a child that is not ready.
const MAX_MESSAGE: usize = 4096;

/// What a stand-in hears when its caller is done with it: from then on it
/// outlives the caller.
pub const RELEASED: u8 = b'r';

/// How much of a command is shown: words, and characters of each.
const SHOWN_WORDS: usize = 32;
const SHOWN_CHARACTERS: usize = 256;

/// This binary, also where the file system it came from is out of sight.
const OURSELVES: &str = "/proc/self/exe";

/// Why one of them is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("{who}: {what}: {source}")]
    Start {
        /// Which process.
        who: &'static str,
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// It says so itself.
    #[error("{who}: {words}")]
    NotReady {
        /// Which process.
        who: &'static str,
        /// Its own words.
        words: String,
    },
}

fn failed(who: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Start {
        who,
        what: what.into(),
        source,
    }
}

/// A stand-in that has been made; see [`crate::stand_in`].
#[derive(Debug)]
pub struct StandInProcess {
    child: Child,
    control: UnixStream,
    readiness: UnixStream,
}

/// What a stand-in is started with.
#[derive(Debug, Clone, Copy)]
pub struct StandInStart<'a> {
    /// Id of the container.
    pub id: &'a Id,
    /// Its network namespace; a new one without.
    pub netns: Option<&'a Path>,
    /// The terminal whose size it follows.
    pub terminal: Option<BorrowedFd<'a>>,
    /// What it stands for: `docker top` and people look for that.
    pub command: &'a [String],
}

fn shown(word: &str) -> String {
    let shown = word.chars().take(SHOWN_CHARACTERS);
    shown.filter(|character| *character != '\0').collect()
}

impl StandInProcess {
    /// Makes the stand-in of a container: in namespaces of its own, so that who
    /// enters them sees nothing of the host, and in the network namespace that
    /// `netns` names, or else in a new one.
    ///
    /// # Errors
    /// EPERM without the right to make namespaces.
    pub fn spawn(start: StandInStart<'_>) -> Result<Self, Error> {
        const WHO: &str = "stand-in";
        let StandInStart {
            id,
            netns,
            terminal,
            command,
        } = start;
        let mut line = ["casemate", "stand-in", "--id", id.as_str()]
            .map(str::to_owned)
            .to_vec();
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
        let pair = || UnixStream::pair().map_err(failed(WHO, "socket pair"));
        let ((control, theirs), (readiness, writer)) = (pair()?, pair()?);
        let started = Start {
            birth: Birth {
                namespaces: Some(namespaces),
                cgroup: None,
            },
            stdio: [terminal; 3],
            descriptors: &[theirs.as_fd(), writer.as_fd()],
            ..Start::default()
        };
        let child = program::start(OURSELVES, &line, started);
        Ok(Self {
            child: child.map_err(failed(WHO, "new process in new namespaces"))?,
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
    pub fn await_readiness(&self) -> Result<(), Error> {
        await_ready("stand-in", &self.readiness)
    }

    /// Waits for the same without standing in anybody's way.
    ///
    /// # Errors
    /// Its own words.
    pub async fn ready(&self) -> Result<(), Error> {
        let wait = async {
            let socket = self.readiness.try_clone()?;
            socket.set_nonblocking(true)?;
            let mut socket = tokio::net::UnixStream::from_std(socket)?;
            let mut message = Vec::new();
            while !is_whole(&message) {
                match socket.read_u8().await {
                    Ok(byte) => message.push(byte),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(message)
        };
        let message = wait.await.map_err(failed("stand-in", "readiness"))?;
        verdict("stand-in", &message)
    }

    /// The process, to be waited for; the monitor alone holds the control
    /// socket from now on, and the end of this process is nothing to it.
    pub fn release(mut self) -> Child {
        // One that has ended already needs no word.
        let _ = self.readiness.write_all(&[RELEASED]);
        self.child
    }

    /// The monitor's hold on it, for a monitor that has made it itself, and the
    /// process, to be waited for.
    pub fn keep(mut self) -> (stand_in::StandIn, Child) {
        // As above.
        let _ = self.readiness.write_all(&[RELEASED]);
        let hold = stand_in::StandIn::new(self.child.pid(), self.control);
        (hold, self.child)
    }

    /// Ends it and waits for that.
    pub fn end(self) {
        let Self { child, control, .. } = self;
        drop(control);
        end(&child);
    }
}

/// What a monitor is started with.
#[derive(Debug, Clone, Copy)]
pub struct MonitorStart<'a> {
    /// Id of the sandbox.
    pub id: &'a Id,
    /// The state root.
    pub root: &'a Path,
    /// Directory of the sandbox.
    pub sandbox: &'a Path,
    /// Its network namespace; without one it makes a stand-in that has one.
    pub netns: Option<&'a Path>,
    /// Host name of the guest.
    pub hostname: &'a str,
    /// Its cgroup, as the bundle names it.
    pub cgroup: Option<&'a str>,
    /// The configuration.
    pub config: &'a Config,
    /// How large the template is that its machine begins from.
    pub template: Size,
    /// It logs everything.
    pub debug: bool,
    /// When the start began, on the timeline's clock.
    pub begun_ns: u64,
    /// containerd, when that is the client.
    pub containerd: Option<Containerd<'a>>,
}

/// What containerd says about itself when it starts a sandbox.
#[derive(Debug, Clone, Copy)]
pub struct Containerd<'a> {
    /// Where it takes events (ttrpc).
    pub events: Option<&'a str>,
    /// Its namespace.
    pub namespace: &'a str,
    /// Bundle of the first container.
    pub bundle: &'a Path,
    /// What its log is to say first.
    pub warnings: &'a [String],
    /// It will describe a pod by its Sandbox API; nothing else is known of it.
    pub is_pod: bool,
    /// Where it will connect, listening already.
    pub listener: BorrowedFd<'a>,
}

/// A monitor that has been made.
#[derive(Debug)]
pub struct MonitorProcess {
    child: Child,
    readiness: PipeReader,
}

impl MonitorProcess {
    /// Makes the monitor of a sandbox: detached from everything of ours but the
    /// mount namespace it starts from.
    ///
    /// # Errors
    /// When the process or its log cannot be made.
    pub fn spawn(start: MonitorStart<'_>) -> Result<Self, Error> {
        const WHO: &str = "monitor";
        let log_path = start.sandbox.join(MONITOR_LOG);
        let mut options = OpenOptions::new();
        let log = options.create(true).append(true).open(&log_path);
        let log = log.map_err(failed(WHO, log_path.display().to_string()))?;
        let config = as_file(start.config).map_err(failed(WHO, "configuration"))?;
        let (readiness, writer) = io::pipe().map_err(failed(WHO, "pipe"))?;
        let mut descriptors = vec![config.as_fd(), writer.as_fd()];
        descriptors.extend(start.containerd.map(|client| client.listener));
        let started = Start {
            stdio: [None, None, Some(log.as_fd())],
            descriptors: &descriptors,
            new_session: true,
            ..Start::default()
        };
        let child = program::start(OURSELVES, &command_line(start), started);
        Ok(Self {
            child: child.map_err(failed(WHO, "new process"))?,
            readiness,
        })
    }

    /// Process id on the host.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Waits until it listens.
    ///
    /// # Errors
    /// Its own words.
    pub fn await_readiness(&self) -> Result<(), Error> {
        await_ready("monitor", &self.readiness)
    }

    /// Ends it and waits for that; its children die with it.
    pub fn end(self) {
        end(&self.child);
    }
}

fn command_line(start: MonitorStart<'_>) -> Vec<String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut line = vec!["casemate".to_owned()];
    let mut say = |flag: &str, value: String| line.extend([flag.to_owned(), value]);
    if let Some(client) = start.containerd {
        say("--log", path(&client.bundle.join("log")));
    }
    if start.debug {
        line.push("--debug".into());
    }
    line.push("monitor".into());
    let mut say = |flag: &str, value: String| line.extend([flag.to_owned(), value]);
    say("--id", start.id.to_string());
    say("--directory", path(start.sandbox));
    say("--root", path(start.root));
    say("--hostname", start.hostname.to_owned());
    if let Some(netns) = start.netns {
        say("--netns", path(netns));
    }
    if let Some(cgroup) = start.cgroup {
        say("--cgroup", cgroup.to_owned());
    }
    say("--begun-ns", start.begun_ns.to_string());
    say("--spawned-ns", now_ns().to_string());
    say("--log-level", start.config.log.level.to_string());
    say("--template-vcpus", start.template.vcpus.to_string());
    say(
        "--template-memory-mib",
        start.template.memory_mib.to_string(),
    );
    if let Some(client) = start.containerd {
        say("--containerd-namespace", client.namespace.to_owned());
        if let Some(address) = client.events {
            say("--containerd-events", address.to_owned());
        }
        say("--bundle", path(client.bundle));
        for warning in client.warnings {
            say("--warning", warning.clone());
        }
        if client.is_pod {
            line.push("--pod".into());
        }
    }
    line
}

fn end(child: &Child) {
    if child.signal(libc::SIGKILL).is_ok() {
        // Reaped now, whatever it ended with.
        let _ = child.wait();
    }
}

/// Waits for the child's word: [`READY`], or the reason why not.
fn await_ready(who: &'static str, mut readiness: impl Read) -> Result<(), Error> {
    let mut message = Vec::new();
    let mut byte = [0];
    while !is_whole(&message) {
        match readiness
            .read(&mut byte)
            .map_err(failed(who, "readiness"))?
        {
            0 => break,
            _ => message.push(byte[0]),
        }
    }
    verdict(who, &message)
}

fn is_whole(message: &[u8]) -> bool {
    message.len() >= MAX_MESSAGE || message.last() == Some(&b'\n')
}

fn verdict(who: &'static str, message: &[u8]) -> Result<(), Error> {
    if message == READY {
        return Ok(());
    }
    let words = match String::from_utf8_lossy(message).trim() {
        "" => "ended before it was ready".to_owned(),
        words => words.to_owned(),
    };
    Err(Error::NotReady { who, words })
}

/// The configuration as an anonymous file.
fn as_file(config: &Config) -> io::Result<File> {
    let mut file = descriptor::memory_file("casemate-config")?;
    serde_json::to_writer(&file, config)?;
    file.rewind()?;
    Ok(file)
}
