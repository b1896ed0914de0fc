//! One connection with the host, from the call to its end. A VM has one in its
//! life; one that is saved has another afterwards, over another vsock device.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use casemate_protocol::{
    agent_ttrpc::create_agent,
    stream::{answer, read_request},
};
use futures::StreamExt;
use tokio::sync::Notify;
use ttrpc::r#async::{Server, transport::Listener as ControlListener};

use crate::{
    console::say,
    control::Control,
    error::{Doing, Result},
    loopback,
    sandbox::Sandbox,
    server::Service,
    timeline::Timeline,
    transport::{Connection, Dialled, Listener, Transport},
};

/// How long the host may take to hang up when it has been told that nothing more
/// will come. Hanging up before could lose the answer in the virtqueue.
const HANGUP_LIMIT: Duration = Duration::from_secs(1);

/// What the end of a connection means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The VM has nothing left to do.
    Final,
    /// The VM is to be saved; whoever resumes it is called anew, over another
    /// device than this one (see [`Transport::device`]).
    Template { device: Option<u64> },
}

/// The end of a connection, told by whoever notices it.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    happened: Notify,
    /// The device that a template has called over.
    template: OnceLock<Option<u64>>,
}

impl Ending {
    /// The connection has ended.
    pub(crate) fn now(&self) {
        self.happened.notify_one();
    }

    /// The connection ends when the host has read an answer and hangs up, and soon
    /// in any case.
    pub(crate) fn soon(self: &Arc<Self>) {
        let ending = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(HANGUP_LIMIT).await;
            ending.now();
        });
    }

    /// The end will not be that of the VM, but of this device of it.
    pub(crate) fn is_for_template(&self, device: Option<u64>) {
        self.template.get_or_init(|| device);
    }

    async fn awaited(&self) -> End {
        self.happened.notified().await;
        match self.template.get() {
            Some(&device) => End::Template { device },
            None => End::Final,
        }
    }
}

/// Serves the host until one of the two hangs up; of the connection and of what
/// belongs to it nothing is left then.
pub(crate) async fn serve(
    call: Dialled,
    transport: &Transport,
    sandbox: &Arc<Sandbox>,
    mut timeline: Timeline,
) -> Result<End> {
    let listener = transport.listen().doing(|| "listen for streams".into())?;
    let streams = tokio::spawn(accept_streams(listener, Arc::clone(sandbox)));
    let connection = call
        .answered()
        .await
        .doing(|| "connect to the host".into())?;
    timeline.mark("connect");

    let ending = Arc::new(Ending::default());
    let control = Control::new(connection, Arc::clone(&ending));
    let spans = timeline.into_spans();
    let service = Service::new(Arc::clone(sandbox), spans, Arc::clone(&ending));
    // The server's one "listener" has this connection to offer and no other.
    let only = futures::stream::iter([io::Result::Ok(control)]).chain(futures::stream::pending());
    let mut server = Server::new()
        .add_listener(ControlListener::new(only))
        .register_service(create_agent(Arc::new(service)));
    let failed = |error| io::Error::other(error);
    server
        .start()
        .await
        .map_err(failed)
        .doing(|| "serve".into())?;
    let end = ending.awaited().await;
    if end != End::Final {
        streams.abort();
        // It is cancelled, as it was asked to be.
        let _ = streams.await;
        let closed = server.shutdown().await;
        closed.map_err(failed).doing(|| "hang up".into())?;
    }
    Ok(end)
}

async fn accept_streams(listener: Listener, sandbox: Arc<Sandbox>) {
    loop {
        match listener.accept().await {
            Ok(connection) => drop(tokio::spawn(attach(connection, Arc::clone(&sandbox)))),
            Err(error) => return say(format_args!("accept a stream: {error}")),
        }
    }
}

/// Connects a stream to the process that its preface names.
async fn attach(mut connection: Connection, sandbox: Arc<Sandbox>) {
    let hello = match read_request(&mut connection).await {
        Ok(hello) => hello,
        Err(error) => return say(format_args!("{error}")),
    };
    if hello.loopback_port != 0 {
        return loopback::join(connection, hello.loopback_port).await;
    }
    let Ok(hangup) = connection.hangup() else {
        return;
    };
    let pump = tokio::select! {
        pump = sandbox.stream(&hello) => pump,
        // The process will not be made.
        () = hangup.happened() => return,
    };
    drop(hangup);
    if answer(&mut connection, pump.is_some()).await.is_ok()
        && let Some(pump) = pump
    {
        pump.run(connection).await;
    }
}
