//! Events for containerd, in order: what happens in the sandbox goes to its
//! event service (containerd.services.events.ttrpc.v1.Events). While it is not
//! there, because it is being restarted, they wait.

mod messages;

use std::{path::PathBuf, time::Duration};

use casemate_linux::socket;
use casemate_sandbox::{ExitStatus, Key, News};
use containerd_shim_protos::{
    api::ForwardRequest, events::task::TaskCreate, protobuf::well_known_types::any::Any,
    shim::event::Envelope, shim_async::EventsClient,
};
use messages::encode;
use tokio::{
    net::UnixStream,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::{sleep, timeout},
};
use ttrpc::{
    asynchronous::{Client, transport::Socket},
    context,
};

use crate::status::timestamp;

/// How long containerd may take to accept an event.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two attempts to reach containerd.
const BETWEEN: Duration = Duration::from_millis(250);

/// How long the last events may take when the sandbox ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// Most events that wait for a containerd that is not there; older ones are
/// dropped, since what they tell can be asked.
const MAX_WAITING: usize = 4096;

/// A thing that happened, as containerd has it.
#[derive(Debug)]
pub(super) enum Event {
    /// Of the sandbox's own accord.
    News(News),
    /// A container was made.
    Created(Box<TaskCreate>),
    /// An exec is known.
    ExecAdded(Key),
    /// A container has been removed; its process id was this.
    Deleted(Key, u32, ExitStatus),
    /// There are no more.
    Last,
}

/// Where to put events.
#[derive(Debug, Clone)]
pub(super) struct Publisher(UnboundedSender<Event>);

/// The work of sending them.
#[derive(Debug)]
pub(super) struct Publishing(JoinHandle<()>);

impl Publisher {
    /// Begins to publish to the service at `address`, in a namespace; without an
    /// address to nobody.
    pub(super) fn open(address: Option<PathBuf>, namespace: String) -> (Self, Publishing) {
        let (sender, queue) = unbounded_channel();
        let work = tokio::spawn(async move {
            match address {
                Some(address) => publish(queue, Service::new(address, namespace)).await,
                None => discard(queue).await,
            }
        });
        (Self(sender), Publishing(work))
    }

    pub(super) fn tell(&self, event: Event) {
        // It ends after everybody who could call this.
        let _ = self.0.send(event);
    }
}

impl Publishing {
    /// Waits until all is sent, or it is clear that nobody takes it.
    pub(super) async fn finish(mut self) {
        if timeout(FAREWELL, &mut self.0).await.is_err() {
            tracing::warn!("containerd has not taken the last events");
            self.0.abort();
        }
    }
}

async fn discard(mut queue: UnboundedReceiver<Event>) {
    while !matches!(queue.recv().await, None | Some(Event::Last)) {}
}

async fn publish(mut queue: UnboundedReceiver<Event>, mut service: Service) {
    while let Some(event) = queue.recv().await {
        if matches!(event, Event::Last) {
            return;
        }
        let Some((topic, any)) = encode(event) else {
            continue;
        };
        let request = service.request(topic, any);
        while let Err(error) = service.forward(&request).await {
            tracing::debug!(topic, %error, "containerd does not take events, trying again");
            sleep(BETWEEN).await;
            while queue.len() > MAX_WAITING {
                let _ = queue.try_recv();
            }
        }
    }
}

/// containerd's event service.
struct Service {
    address: PathBuf,
    namespace: String,
    client: Option<EventsClient>,
}

impl Service {
    fn new(address: PathBuf, namespace: String) -> Self {
        Self {
            address,
            namespace,
            client: None,
        }
    }

    fn request(&self, topic: &str, event: Any) -> ForwardRequest {
        ForwardRequest {
            envelope: Some(Envelope {
                timestamp: timestamp(Some(ExitStatus::now(0))),
                namespace: self.namespace.clone(),
                topic: topic.to_owned(),
                event: Some(event).into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    async fn forward(&mut self, request: &ForwardRequest) -> ttrpc::Result<()> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.connect()?,
        };
        let mut context = context::with_duration(PATIENCE);
        context.set(
            "containerd-namespace-ttrpc".to_owned(),
            vec![self.namespace.clone()],
        );
        let answer = client.forward(context, request).await.map(drop);
        match answer {
            // It is there and does not want this one.
            Err(ttrpc::Error::RpcStatus(status))
                if status.code() != ttrpc::Code::DEADLINE_EXCEEDED
                    && status.code() != ttrpc::Code::UNAVAILABLE =>
            {
                tracing::warn!(error = status.message(), "containerd refuses an event");
                Ok(())
            }
            Err(error) => {
                self.client = None;
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    fn connect(&mut self) -> ttrpc::Result<EventsClient> {
        let open = || {
            let stream = socket::connect(&self.address)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        let stream: std::io::Result<_> = open();
        let stream = stream.map_err(|error| ttrpc::Error::Others(error.to_string()))?;
        let client = EventsClient::new(Client::new(Socket::new(stream)));
        Ok(self.client.insert(client).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use casemate_sandbox::Id;
    use containerd_shim_protos::{
        api::Empty,
        shim_async::{Events, create_events},
    };
    use tokio::net::UnixListener;
    use ttrpc::asynchronous::{Server, TtrpcContext, transport::Listener};

    use super::*;

    /// Notes topics and type names.
    #[derive(Default)]
    struct Daemon(Mutex<Vec<(String, String)>>);

    #[async_trait]
    impl Events for Daemon {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let envelope = request.envelope.unwrap();
            assert_eq!(envelope.namespace, "k8s.io");
            assert!(envelope.timestamp.seconds > 1_600_000_000);
            let event = (envelope.topic, envelope.event.type_url.clone());
            self.0.lock().unwrap().push(event);
            Ok(Empty::default())
        }
    }

    async fn serve(path: &std::path::Path, daemon: &Arc<Daemon>) -> Server {
        let listener = UnixListener::bind(path).unwrap();
        let connections = futures::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(connection, _)| connection);
            Some((accepted, listener))
        });
        let mut server = Server::new()
            .add_listener(Listener::new(connections))
            .register_service(create_events(Arc::clone(daemon) as _));
        server.start().await.unwrap();
        server
    }

    fn key(exec: Option<&str>) -> Key {
        Key {
            container: Id::new("web").unwrap(),
            exec: exec.map(|exec| Id::new(exec).unwrap()),
        }
    }

    #[tokio::test]
    async fn events_arrive_in_order_and_wait_for_containerd() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.ttrpc");
        let daemon = Arc::new(Daemon::default());
        let (publisher, publishing) = Publisher::open(Some(path.clone()), "k8s.io".into());
        let exit = ExitStatus::now(7);
        publisher.tell(Event::Created(Box::default()));
        publisher.tell(Event::News(News::Started(key(None), 1)));
        // Only now is somebody there.
        sleep(Duration::from_millis(50)).await;
        let mut server = serve(&path, &daemon).await;
        publisher.tell(Event::ExecAdded(key(Some("e"))));
        publisher.tell(Event::News(News::Started(key(Some("e")), 2)));
        publisher.tell(Event::News(News::OutOfMemory(key(None).container)));
        publisher.tell(Event::News(News::Exited(key(None), 1, exit)));
        publisher.tell(Event::Deleted(key(None), 1, exit));
        publisher.tell(Event::Last);
        publishing.finish().await;
        let told = std::mem::take(&mut *daemon.0.lock().unwrap());
        let names = [
            ("create", "TaskCreate"),
            ("start", "TaskStart"),
            ("exec-added", "TaskExecAdded"),
            ("exec-started", "TaskExecStarted"),
            ("oom", "TaskOOM"),
            ("exit", "TaskExit"),
            ("delete", "TaskDelete"),
        ];
        let expected = names.map(|(topic, name)| {
            (
                format!("/tasks/{topic}"),
                format!("containerd.events.{name}"),
            )
        });
        assert_eq!(told, expected);
        server.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_for_a_containerd_that_has_gone() {
        let gone = PathBuf::from("/no/such/socket");
        let (publisher, publishing) = Publisher::open(Some(gone), "k8s.io".into());
        publisher.tell(Event::ExecAdded(key(Some("e"))));
        drop(publisher);
        publishing.finish().await;
    }
}
