//! The QEMU Machine Protocol: typed commands with deadlines over a socket, and
//! the few events that matter (QEMU, docs/interop/qmp-spec).

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream as StdStream,
    },
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use casemate_linux::socket::send_with_descriptors;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::lines::Lines;
use crate::printable::printable;

/// A command; serialized, it is its own `arguments`.
pub(super) trait Command: Serialize + Sync {
    /// Its name in the protocol.
    const NAME: &'static str;
    /// What QEMU returns.
    type Answer: DeserializeOwned;
}

/// The answer of commands that only succeed.
#[derive(Debug, Deserialize)]
pub(super) struct Done {}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the connection is closed")]
    Closed,
    #[error("no answer in time")]
    Deadline,
    /// What the command is about does not exist.
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Protocol(String),
}

/// What QEMU tells unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A plugged device has left.
    DeviceDeleted { device: String },
    /// The guest would not let a device go.
    UnplugRefused { device: String },
    /// Saving or restoring has come to another state.
    Migration { status: String },
}

/// Events that a listener may be behind.
const EVENTS: usize = 64;

/// The client's side of a connection.
pub(super) struct Qmp {
    /// Held while a command is under way.
    writer: tokio::sync::Mutex<Writer>,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

struct Writer {
    socket: OwnedWriteHalf,
    next_id: u64,
}

/// Between the reading task and the callers. A lock is never held across a wait.
struct Shared {
    pending: Mutex<Pending>,
    /// Nothing once the connection is closed, so that who listens sees the end.
    events: Mutex<Option<broadcast::Sender<Event>>>,
}

enum Pending {
    Nothing,
    Command(u64, oneshot::Sender<Answer>),
    Closed,
}

impl Qmp {
    /// Waits for the greeting on a connected socket. The reasons that QEMU gives
    /// for a shutdown go to `shutdowns`, which is closed when QEMU has closed.
    ///
    /// # Errors
    /// UnexpectedEof when QEMU closes instead, InvalidData when it says
    /// something else.
    pub(super) async fn connect(
        socket: StdStream,
        shutdowns: mpsc::Sender<String>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (reader, socket) = UnixStream::from_std(socket)?.into_split();
        let mut lines = Lines::new(reader);
        let greeting = lines.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let Ok(Message::Greeting { .. }) = serde_json::from_slice(&greeting) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let shared = Arc::new(Shared {
            pending: Mutex::new(Pending::Nothing),
            events: Mutex::new(Some(broadcast::channel(EVENTS).0)),
        });
        let reader = tokio::spawn(read(lines, Arc::clone(&shared), shutdowns));
        Ok(Self {
            writer: tokio::sync::Mutex::new(Writer { socket, next_id: 1 }),
            shared,
            reader,
        })
    }

    /// Events from now on.
    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        match &*locked(&self.shared.events) {
            Some(events) => events.subscribe(),
            None => broadcast::channel(EVENTS).1,
        }
    }

    /// Executes a command.
    pub(super) async fn execute<C: Command>(
        &self,
        command: &C,
        deadline: Duration,
    ) -> Result<C::Answer, Failure> {
        self.exchange(command, None, deadline).await
    }

    /// Executes a command that a descriptor belongs to.
    pub(super) async fn execute_with<C: Command>(
        &self,
        command: &C,
        descriptor: BorrowedFd<'_>,
        deadline: Duration,
    ) -> Result<C::Answer, Failure> {
        self.exchange(command, Some(descriptor), deadline).await
    }

    async fn exchange<C: Command>(
        &self,
        command: &C,
        descriptor: Option<BorrowedFd<'_>>,
        deadline: Duration,
    ) -> Result<C::Answer, Failure> {
        let run = self.run(command, descriptor);
        let answer = timeout(deadline, run)
            .await
            .map_err(|_| Failure::Deadline)?
            .map_err(|_| Failure::Closed)?;
        if let Some(refusal) = answer.error {
            let reason = printable(refusal.desc.as_bytes(), 500);
            return Err(match refusal.class.as_str() {
                "DeviceNotFound" => Failure::Missing(reason),
                _ => Failure::Refused(reason),
            });
        }
        serde_json::from_value(answer.value).map_err(|error| Failure::Protocol(error.to_string()))
    }

    async fn run<C: Command>(
        &self,
        command: &C,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<Answer> {
        let mut writer = self.writer.lock().await;
        let id = writer.next_id;
        writer.next_id += 1;
        let mut line = serde_json::to_vec(&Request {
            execute: C::NAME,
            arguments: command,
            id,
        })?;
        line.push(b'\n');
        let answered = self.shared.expect(id)?;
        writer.send(&line, descriptor).await?;
        answered
            .await
            .map_err(|_| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Writer {
    /// Commands are far smaller than the socket's buffer, so this does not stop
    /// half way unless QEMU has not read for a long time.
    async fn send(&mut self, line: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut sent = 0;
        if let Some(descriptor) = descriptor {
            let socket: &UnixStream = self.socket.as_ref();
            sent = socket
                .async_io(Interest::WRITABLE, || {
                    send_with_descriptors(socket.as_fd(), line, &[descriptor])
                })
                .await?;
        }
        self.socket.write_all(&line[sent..]).await
    }
}

impl Shared {
    fn tell(&self, event: Event) {
        if let Some(events) = &*locked(&self.events) {
            let _ = events.send(event);
        }
    }

    /// Takes the place of a command that ran out of time, if there was one.
    fn expect(&self, id: u64) -> io::Result<oneshot::Receiver<Answer>> {
        let mut pending = locked(&self.pending);
        if matches!(*pending, Pending::Closed) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (answer, answered) = oneshot::channel();
        *pending = Pending::Command(id, answer);
        Ok(answered)
    }

    fn answer(&self, answer: Answer) {
        let mut pending = locked(&self.pending);
        match std::mem::replace(&mut *pending, Pending::Nothing) {
            // A caller that has given up does not want it any more.
            Pending::Command(id, caller) if answer.id == Some(id) => drop(caller.send(answer)),
            other => *pending = other,
        }
    }
}

/// Reads until QEMU closes or breaks the protocol; then every command fails.
async fn read(
    mut lines: Lines<OwnedReadHalf>,
    shared: Arc<Shared>,
    shutdowns: mpsc::Sender<String>,
) {
    while let Ok(Some(line)) = lines.next().await {
        match serde_json::from_slice(&line) {
            Ok(Message::Answer(answer)) => shared.answer(answer),
            Ok(Message::Event(event)) => match event.typed() {
                // The first reasons are enough, should nobody take them.
                Some(Told::Shutdown(reason)) => drop(shutdowns.try_send(reason)),
                // Without a listener it is of no interest to anybody.
                Some(Told::Event(event)) => shared.tell(event),
                None => {}
            },
            Ok(Message::Greeting { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, "QEMU broke its control protocol");
                break;
            }
        }
    }
    *locked(&shared.pending) = Pending::Closed;
    *locked(&shared.events) = None;
}

/// Nothing panics while it holds one of these locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[derive(Serialize)]
struct Request<'a, C> {
    execute: &'static str,
    arguments: &'a C,
    id: u64,
}

/// Every kind of message that QEMU sends.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _greeting: serde::de::IgnoredAny,
    },
    Event(RawEvent),
    Answer(Answer),
}

#[derive(Deserialize)]
struct Answer {
    /// Missing in the answer to something that QEMU could not parse.
    id: Option<u64>,
    #[serde(rename = "return", default)]
    value: serde_json::Value,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

#[derive(Deserialize)]
struct RawEvent {
    event: String,
    #[serde(default)]
    data: RawEventData,
}

#[derive(Default, Deserialize)]
struct RawEventData {
    reason: Option<String>,
    device: Option<String>,
    status: Option<String>,
}

enum Told {
    Shutdown(String),
    Event(Event),
}

impl RawEvent {
    fn typed(self) -> Option<Told> {
        let RawEventData {
            reason,
            device,
            status,
        } = self.data;
        match self.event.as_str() {
            "SHUTDOWN" => reason.map(Told::Shutdown),
            "DEVICE_DELETED" => device.map(|device| Told::Event(Event::DeviceDeleted { device })),
            "DEVICE_UNPLUG_GUEST_ERROR" => {
                device.map(|device| Told::Event(Event::UnplugRefused { device }))
            }
            "MIGRATION" => status.map(|status| Told::Event(Event::Migration { status })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
