//! The requests to a sandbox, and who takes them before there is one.

use tokio::sync::{mpsc, oneshot};

use crate::{
    error::Error,
    handle::{Command, Handle, Stop},
};

/// Where what is asked of a [`Handle`] arrives. Until it is opened
/// ([`Inbox::open`]) there is no sandbox.
pub struct Inbox(pub(crate) mpsc::UnboundedReceiver<Command>);

/// Who waits for the end.
#[derive(Debug)]
pub struct Farewell(oneshot::Sender<Result<(), Error>>);

impl Inbox {
    /// One, and the handle that leads to it.
    pub fn new() -> (Handle, Self) {
        let (commands, queue) = mpsc::unbounded_channel();
        (Handle(commands), Self(queue))
    }

    /// Turns everybody away until somebody asks for the end. It may be dropped
    /// at any time; nothing is lost that was not turned away.
    pub async fn end_asked(&mut self) -> Farewell {
        loop {
            match self.0.recv().await {
                Some(Command::Stop(Stop::Now | Stop::Without(_), reply)) => return Farewell(reply),
                Some(Command::Stop(Stop::Machine, reply)) => drop(reply.send(Ok(()))),
                // Who waits for the answer learns that there is none.
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }
}

impl Farewell {
    /// Nothing is left.
    pub fn say(self) {
        // Nobody is hurt when the one who asked has gone.
        let _ = self.0.send(Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identifier::Id;

    #[tokio::test(flavor = "current_thread")]
    async fn nothing_can_be_had_but_the_end() {
        let (handle, mut inbox) = Inbox::new();
        let asking = async {
            assert!(matches!(handle.containers().await, Err(Error::Closing)));
            handle.stop(Stop::Machine).await.unwrap();
            handle
                .stop(Stop::Without(Id::new("web").unwrap()))
                .await
                .unwrap();
        };
        let answering = async { inbox.end_asked().await.say() };
        tokio::join!(asking, answering);
    }
}
