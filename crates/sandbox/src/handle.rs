//! The one way to a sandbox, for every front door.

use std::{collections::BTreeMap, path::PathBuf};

use tokio::sync::{mpsc, oneshot};

use crate::{
    container::{ExitStatus, Reply},
    error::Error,
    identifier::Id,
    key::Key,
    rootfs::RootMount,
    stand_in::Attachment,
    state::Status,
    stdio::Stdio,
    timeline::Span,
};

/// A sandbox that runs in this process. Clones speak to the same one.
#[derive(Clone)]
pub struct Handle(pub(crate) mpsc::UnboundedSender<Command>);

/// A container to be made.
#[derive(Debug)]
pub struct Create {
    /// Its id.
    pub id: Id,
    /// Absolute path of the OCI bundle.
    pub bundle: PathBuf,
    /// What makes its root file system, in this order, at the place that the
    /// bundle names; empty when it is there already.
    pub rootfs: Vec<RootMount>,
}

/// What happens in a sandbox without anybody asking, or when what was asked for
/// has happened. News come in the order of the events.
#[derive(Debug, Clone)]
pub enum News {
    /// A process runs; its id on the host that clients may watch.
    Started(Key, u32),
    /// A process has ended, and its output is with the client.
    Exited(Key, u32, ExitStatus),
    /// The guest has killed a process of a container for want of memory.
    OutOfMemory(Id),
    /// No process of a container runs any more.
    Paused(Id),
    /// They go on.
    Resumed(Id),
}

/// When a sandbox is to end.
#[derive(Debug, Clone)]
pub enum Stop {
    /// Now, with everything in it.
    Now,
    /// If only this container, or nobody, still needs it; else the request is
    /// fulfilled when nobody does.
    Without(Id),
}

/// What a process looks like from outside.
#[derive(Debug, Clone)]
pub struct ProcessState {
    /// Absolute path of the container's bundle.
    pub bundle: PathBuf,
    /// Process id on the host that clients may watch.
    pub pid: u32,
    /// Where it stands.
    pub status: Status,
    /// It has a terminal.
    pub terminal: bool,
    /// How it ended, when it has.
    pub exit: Option<ExitStatus>,
}

/// A process of a container as its guest sees it. The guest is not trusted:
/// the command is fit to be shown, the rest are numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestProcess {
    /// Its id in the guest's initial PID namespace.
    pub pid: u32,
    /// The id of its parent there.
    pub parent: u32,
    /// Its user id in the guest's initial user namespace.
    pub uid: u32,
    /// When it began, in nanoseconds of CLOCK_REALTIME.
    pub started_at_ns: u64,
    /// Processor time used, in nanoseconds.
    pub cpu_ns: u64,
    /// Device number of its controlling terminal, 0 for none.
    pub terminal: u32,
    /// Its arguments, joined by blanks.
    pub command: String,
    /// The process on the host that stands for it: for init and execs.
    pub host_pid: Option<u32>,
    /// Its exec id; that of the init is empty. Others have none.
    pub exec: Option<String>,
}

/// Interface files of a container's cgroup in the guest, by name.
pub type CgroupFiles = BTreeMap<String, String>;

/// Requests to the owner task, each with the place of its answer.
pub(crate) enum Command {
    Attach(Box<Attachment>, Reply<()>),
    Create(Create, Reply<u32>),
    Exec(Key, Vec<u8>, Reply<()>),
    Supply(Key, Stdio, Reply<()>),
    Start(Key, Reply<u32>),
    Wait(Key, Reply<ExitStatus>),
    Signal {
        key: Key,
        signal: u32,
        all: bool,
        reply: Reply<()>,
    },
    Resize {
        key: Key,
        columns: u32,
        rows: u32,
        reply: Reply<()>,
    },
    CloseInput(Key, Reply<()>),
    State(Key, Reply<ProcessState>),
    Processes(Id, Reply<Vec<GuestProcess>>),
    /// With true: all processes stop; else they go on.
    Freeze(Id, bool, Reply<()>),
    Update(Id, Vec<u8>, Reply<()>),
    Stats(Id, Reply<CgroupFiles>),
    Delete {
        key: Key,
        force: bool,
        reply: Reply<ExitStatus>,
    },
    Note(Span, Reply<()>),
    Timeline(Reply<Vec<Span>>),
    Stop(Stop, Reply<()>),
}

impl Handle {
    /// Brings a stand-in with its streams, before its process is made.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] when the process has one.
    pub async fn attach(&self, attachment: Attachment) -> Result<(), Error> {
        self.ask(|reply| Command::Attach(Box::new(attachment), reply))
            .await
    }

    /// Makes a container; answers with the pid that clients may watch, once its
    /// init waits before exec in the guest. Its stand-in has been attached, its
    /// directory is there.
    ///
    /// # Errors
    /// A bad bundle, a machine that does not come up, a guest that refuses. The
    /// failed container is gone; with the only one, the whole sandbox.
    pub async fn create(&self, create: Create) -> Result<u32, Error> {
        self.ask(|reply| Command::Create(create, reply)).await
    }

    /// Adds a process (OCI process JSON) to a container; it waits before exec.
    ///
    /// # Errors
    /// When the container does not run or the guest refuses.
    pub async fn exec(&self, key: Key, process: Vec<u8>) -> Result<(), Error> {
        self.ask(|reply| Command::Exec(key, process, reply)).await
    }

    /// Gives an exec that waits for its start the client's ends of its streams.
    ///
    /// # Errors
    /// When it does not wait any more.
    pub async fn supply(&self, key: Key, stdio: Stdio) -> Result<(), Error> {
        self.ask(|reply| Command::Supply(key, stdio, reply)).await
    }

    /// Lets a created process run; answers with the pid that clients may watch.
    ///
    /// # Errors
    /// When it is not waiting for that, or its program cannot be executed.
    pub async fn start(&self, key: Key) -> Result<u32, Error> {
        self.ask(|reply| Command::Start(key, reply)).await
    }

    /// Waits until a process has ended and its output is with the client.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Closing`] when the sandbox goes first.
    pub async fn wait(&self, key: Key) -> Result<ExitStatus, Error> {
        self.ask(|reply| Command::Wait(key, reply)).await
    }

    /// Sends a signal to a process, or to all of its container.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn signal(&self, key: Key, signal: u32, all: bool) -> Result<(), Error> {
        self.ask(|reply| Command::Signal {
            key,
            signal,
            all,
            reply,
        })
        .await
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// When it does not run or has no terminal.
    pub async fn resize(&self, key: Key, columns: u32, rows: u32) -> Result<(), Error> {
        self.ask(|reply| Command::Resize {
            key,
            columns,
            rows,
            reply,
        })
        .await
    }

    /// Ends a process's standard input.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn close_input(&self, key: Key) -> Result<(), Error> {
        self.ask(|reply| Command::CloseInput(key, reply)).await
    }

    /// Where a process stands.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn state(&self, key: Key) -> Result<ProcessState, Error> {
        self.ask(|reply| Command::State(key, reply)).await
    }

    /// The processes of a container in the guest.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn processes(&self, container: Id) -> Result<Vec<GuestProcess>, Error> {
        self.ask(|reply| Command::Processes(container, reply)).await
    }

    /// Freezes every process of a container; answers when none runs any more.
    ///
    /// # Errors
    /// When it does not run, or is paused already.
    pub async fn pause(&self, container: Id) -> Result<(), Error> {
        self.ask(|reply| Command::Freeze(container, true, reply))
            .await
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// When it is not paused.
    pub async fn resume(&self, container: Id) -> Result<(), Error> {
        self.ask(|reply| Command::Freeze(container, false, reply))
            .await
    }

    /// Changes the limits of a container (OCI resources as JSON); what is not
    /// given stays.
    ///
    /// # Errors
    /// When it does not run, or a limit cannot be had: nothing is changed in
    /// the guest then. What the host has taken before the guest refuses stays.
    pub async fn update(&self, container: Id, resources: Vec<u8>) -> Result<(), Error> {
        self.ask(|reply| Command::Update(container, resources, reply))
            .await
    }

    /// What a container has used so far.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn stats(&self, container: Id) -> Result<CgroupFiles, Error> {
        self.ask(|reply| Command::Stats(container, reply)).await
    }

    /// Removes an ended process, or with `force` any process; an init goes with
    /// its container.
    ///
    /// # Errors
    /// When it still runs and force is not given.
    pub async fn delete(&self, key: Key, force: bool) -> Result<ExitStatus, Error> {
        self.ask(|reply| Command::Delete { key, force, reply })
            .await
    }

    /// Adds a span that a front door has measured.
    ///
    /// # Errors
    /// [`Error::Closing`].
    pub async fn note(&self, span: Span) -> Result<(), Error> {
        self.ask(|reply| Command::Note(span, reply)).await
    }

    /// The timeline so far.
    ///
    /// # Errors
    /// [`Error::Closing`].
    pub async fn timeline(&self) -> Result<Vec<Span>, Error> {
        self.ask(Command::Timeline).await
    }

    /// Ends the sandbox and everything in it; answers when nothing is left but
    /// this process, or at once if others live on. (A sandbox also ends when its
    /// last container is deleted.)
    ///
    /// # Errors
    /// What could not be undone.
    pub async fn stop(&self, when: Stop) -> Result<(), Error> {
        self.ask(|reply| Command::Stop(when, reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).map_err(|_| Error::Closing)?;
        answer.await.map_err(|_| Error::Closing)?
    }
}
