//! What a monitor does for containerd before the sandbox is asked: it makes the
//! stand-ins itself, opens the streams that containerd names, remembers these,
//! and tells what happens.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use anyhow::Context;
use casemate_linux::view::View;
use casemate_sandbox::{
    Client, Error as SandboxError, ExitStatus, Handle, Id, Key, Listener, News,
    claim::{self, Claim},
    processes::{self, StandInProcess, StandInStart},
    stand_in::Attachment,
    stdio::Stdio,
};
use containerd_shim_protos::events::task::TaskCreate;

use super::{
    bundle,
    events::{Event, Publisher, Publishing},
    io::{self, Addresses, Streams},
    logger::Subject,
};

/// The namespace of Docker, which gives the ids of processes to the host's ps.
const DOCKER: &str = "moby";

/// What the process of a pod is shown as.
const PAUSE: &str = "/pause";

/// What a monitor knows of its containerd.
#[derive(Debug)]
pub struct Settings {
    /// Id of the sandbox, which is that of its first container.
    pub id: Id,
    /// The state root.
    pub root: PathBuf,
    /// Directory of the sandbox.
    pub sandbox: PathBuf,
    /// containerd's namespace.
    pub namespace: String,
    /// Where it takes events (ttrpc).
    pub events: Option<PathBuf>,
    /// Bundle of the first container.
    pub bundle: PathBuf,
    /// The first container is a pod's own, by the Sandbox API: it is no task, and
    /// containerd does not want to hear of it.
    pub pod: bool,
}

/// See the module.
pub struct Door {
    settings: Settings,
    /// The sandbox's network namespace, once it is known.
    netns: OnceLock<PathBuf>,
    /// The host's files as containerd sees them.
    view: View,
    publisher: Publisher,
    publishing: Mutex<Option<Publishing>>,
    /// The stand-in of the first container, until that is made.
    first: Mutex<Option<StandInProcess>>,
    known: Mutex<BTreeMap<Key, Known>>,
}

/// What is remembered of a process.
#[derive(Debug, Default)]
struct Known {
    addresses: Addresses,
    /// Its streams have been opened.
    is_open: bool,
    /// Keeps its input from ending.
    held: Option<OwnedFd>,
}

/// Why a process cannot come in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Its streams.
    #[error(transparent)]
    Streams(#[from] io::Error),
    /// Its directories.
    #[error(transparent)]
    Claim(#[from] claim::Error),
    /// Its stand-in.
    #[error(transparent)]
    StandIn(#[from] processes::Error),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// This host.
    #[error("{0}")]
    Host(String),
}

/// A process that has come in and is not made yet: forgotten when dropped.
pub(crate) struct Admission<'a> {
    door: &'a Door,
    key: Key,
    claim: Option<Claim>,
    is_made: bool,
}

impl Admission<'_> {
    /// The process has been made.
    pub(crate) fn keep(mut self) {
        self.is_made = true;
        if let Some(claim) = self.claim.take() {
            claim.keep();
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if !self.is_made {
            self.door.forget(&self.key);
        }
    }
}

/// A process that knocks.
pub(crate) struct Arrival<'a> {
    pub(crate) key: Key,
    pub(crate) addresses: Addresses,
    /// What it runs.
    pub(crate) what: What<'a>,
}

/// What a process is made from.
pub(crate) enum What<'a> {
    /// A container's bundle.
    Bundle(&'a Path),
    /// An exec's OCI process, as JSON.
    Process(&'a [u8]),
}

impl Door {
    /// Opens it: events are taken from now on. Call it on a runtime, while this
    /// process sees the host's files as containerd does.
    ///
    /// # Errors
    /// When this process may not look at itself.
    pub fn open(settings: Settings) -> anyhow::Result<Arc<Self>> {
        let view = View::own().context("mount namespace")?;
        let namespace = settings.namespace.clone();
        let (publisher, publishing) = Publisher::open(settings.events.clone(), namespace);
        Ok(Arc::new(Self {
            netns: OnceLock::new(),
            settings,
            view,
            publisher,
            publishing: Mutex::new(Some(publishing)),
            first: Mutex::new(None),
            known: Mutex::default(),
        }))
    }

    /// Has the first container's stand-in on its way; answers with the sandbox's
    /// network namespace. Without `netns` it is the stand-in's own.
    ///
    /// # Errors
    /// When the stand-in cannot be made.
    pub fn begin(&self, netns: Option<&Path>) -> Result<PathBuf, processes::Error> {
        let command = match self.settings.pod {
            true => vec![PAUSE.to_owned()],
            false => bundle::command(&self.settings.bundle),
        };
        let first = StandInProcess::spawn(StandInStart {
            id: &self.settings.id,
            netns,
            terminal: None,
            command: &command,
        })?;
        let netns = netns.map_or_else(|| first.netns(), Path::to_owned);
        *lock(&self.first) = Some(first);
        Ok(self.netns.get_or_init(|| netns).clone())
    }

    /// Id of the sandbox.
    pub(crate) fn id(&self) -> &Id {
        &self.settings.id
    }

    /// The state root.
    pub(crate) fn root(&self) -> &Path {
        &self.settings.root
    }

    /// The sandbox for people who look for its logs (JSON).
    pub(crate) fn describe(&self) -> String {
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "directory": self.settings.sandbox,
            "monitor": std::process::id(),
        })
        .to_string()
    }

    /// Who the sandbox's client is.
    pub fn client(&self) -> Client {
        let publisher = self.publisher.clone();
        let hidden = self.settings.pod.then(|| self.settings.id.clone());
        Client::Containerd(Listener::new(move |news| match &news {
            News::Started(key, ..) | News::Exited(key, ..)
                if Some(&key.container) == hidden.as_ref() => {}
            _ => publisher.tell(Event::News(news)),
        }))
    }

    /// Waits until containerd has all events, or takes none.
    pub async fn close(&self) {
        let publishing = lock(&self.publishing).take();
        self.publisher.tell(Event::Last);
        if let Some(publishing) = publishing {
            publishing.finish().await;
        }
    }

    /// Takes a process in: with its directories, streams and stand-in. An exec has
    /// one only where the host's ids of processes are wanted.
    pub(crate) async fn admit(
        &self,
        sandbox: &Handle,
        arrival: Arrival<'_>,
    ) -> Result<Admission<'_>, Refusal> {
        let Arrival {
            key,
            addresses,
            what,
        } = arrival;
        let known = Known {
            addresses,
            ..Known::default()
        };
        match lock(&self.known).entry(key.clone()) {
            Entry::Occupied(_) => return Err(SandboxError::AlreadyExists.into()),
            Entry::Vacant(place) => place.insert(known),
        };
        let mut admission = Admission {
            door: self,
            key: key.clone(),
            claim: None,
            is_made: false,
        };
        // The place of the first was claimed when it brought the sandbox.
        if key.exec.is_none() && key.container != self.settings.id {
            let home = Some(self.settings.sandbox.as_path());
            admission.claim = Some(Claim::of(&self.settings.root, &key.container, home)?);
        }
        let stdio = match what {
            What::Bundle(_) => self.streams(&key).await?,
            // Its process id is told to nobody who would look for it here.
            What::Process(_) if !self.wants_host_pids() => return Ok(admission),
            What::Process(_) => None,
        };
        let stdio = stdio.unwrap_or_default();
        let attachment = self.attachment(&key, what, stdio).await?;
        sandbox.attach(attachment).await?;
        Ok(admission)
    }

    /// Opens the streams of a process, if they are not open and it came in here.
    /// Those of an exec are opened at its start: a client may send all input at
    /// once, and must know of the process before it can say that this is all.
    pub(crate) async fn streams(&self, key: &Key) -> Result<Option<Stdio>, Refusal> {
        let addresses = match lock(&self.known).get_mut(key) {
            Some(known) if !known.is_open => {
                known.is_open = true;
                known.addresses.clone()
            }
            _ => return Ok(None),
        };
        let subject = Subject {
            namespace: self.settings.namespace.clone(),
            container: key.container.to_string(),
        };
        let Streams { stdio, held } = io::open(&addresses, &self.view, &subject).await?;
        if let Some(known) = lock(&self.known).get_mut(key) {
            known.held = held;
        }
        Ok(Some(stdio))
    }

    async fn attachment(
        &self,
        key: &Key,
        what: What<'_>,
        stdio: Stdio,
    ) -> Result<Attachment, Refusal> {
        let stand_in = self.stand_in(key, &what).await?;
        if let Err(error) = stand_in.ready().await {
            stand_in.end();
            return Err(error.into());
        }
        let view = match what {
            What::Bundle(_) => Some(self.view.try_clone().map_err(host)?),
            What::Process(_) => None,
        };
        let (stand_in, child) = stand_in.keep();
        Ok(Attachment {
            key: key.clone(),
            stand_in,
            stdio,
            size: None,
            view,
            child: Some(child),
            kept: true,
        })
    }

    async fn stand_in(&self, key: &Key, what: &What<'_>) -> Result<StandInProcess, Refusal> {
        if *key == Key::init(self.settings.id.clone())
            && let Some(first) = lock(&self.first).take()
        {
            return Ok(first);
        }
        let command = match what {
            What::Bundle(bundle) => bundle::command(bundle),
            What::Process(process) => bundle::command_of(process),
        };
        let netns = self.netns.get().cloned();
        let netns = netns.ok_or_else(|| Refusal::Host("the sandbox has not begun".into()))?;
        let id = key.container.clone();
        let spawned = tokio::task::spawn_blocking(move || {
            StandInProcess::spawn(StandInStart {
                id: &id,
                netns: Some(&netns),
                terminal: None,
                command: &command,
            })
        });
        Ok(spawned.await.map_err(|error| host(error.into()))??)
    }

    /// Its process is gone, and a container's with all its execs.
    pub(crate) fn forget(&self, key: &Key) {
        let goes = |other: &Key| match key.exec {
            None => other.container == key.container,
            Some(_) => other == key,
        };
        lock(&self.known).retain(|other, _| !goes(other));
    }

    /// The streams of a process as containerd has named them.
    pub(crate) fn addresses(&self, key: &Key) -> Addresses {
        let known = lock(&self.known);
        known
            .get(key)
            .map(|known| known.addresses.clone())
            .unwrap_or_default()
    }

    /// Lets the input of a process end when its writers have gone. Whether it
    /// is one of those that came in here.
    pub(crate) fn end_input(&self, key: &Key) -> bool {
        let mut known = lock(&self.known);
        let known = known.get_mut(key);
        known.map(|known| known.held = None).is_some()
    }

    /// The ids of processes are to be the host's.
    pub(crate) fn wants_host_pids(&self) -> bool {
        self.settings.namespace == DOCKER
    }

    /// Says that a container was made.
    pub(crate) fn created(&self, event: TaskCreate) {
        self.publisher.tell(Event::Created(Box::new(event)));
    }

    /// Says that an exec is known.
    pub(crate) fn exec_added(&self, key: Key) {
        self.publisher.tell(Event::ExecAdded(key));
    }

    /// Says that a container has been removed.
    pub(crate) fn deleted(&self, key: Key, pid: u32, exit: ExitStatus) {
        self.publisher.tell(Event::Deleted(key, pid, exit));
    }
}

fn host(error: std::io::Error) -> Refusal {
    Refusal::Host(error.to_string())
}

/// What is behind these locks is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
