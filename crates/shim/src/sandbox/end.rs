//! The end of a pod's containers.

use std::time::Duration;

use casemate_sandbox::{Error, Key, Stop, state::Status};
use tokio::time::{sleep, timeout};
use ttrpc::{Code, Result};

use super::{SandboxService, refused};
use crate::status::from_error;

/// How long killed containers may take to end before the machine is ended under
/// them.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at a container that is being made.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

impl SandboxService {
    /// Ends all containers, the pod's own last; those who get `patience` are
    /// asked first.
    pub(super) async fn end(&self, pod: &Key, patience: Duration) -> Result<()> {
        if !patience.is_zero() {
            // Who has not listened is killed.
            let _ = timeout(patience, self.end_members(pod, libc::SIGTERM)).await;
        }
        let killed = async {
            self.end_members(pod, libc::SIGKILL).await?;
            self.end_container(pod, libc::SIGKILL).await
        };
        let failure = match timeout(KILL_LIMIT, killed).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "killed containers do not end".to_owned(),
        };
        tracing::warn!(failure, "ending the machine under its containers");
        self.sandbox.stop(Stop::Machine).await.map_err(from_error)?;
        match timeout(KILL_LIMIT, self.sandbox.wait(pod.clone())).await {
            Ok(Ok(_) | Err(Error::NotFound)) => Ok(()),
            Ok(Err(error)) => Err(from_error(error)),
            Err(_) => Err(refused(Code::DEADLINE_EXCEEDED, "the sandbox still runs")),
        }
    }

    /// Sends a signal to all but the pod's own and waits until all have ended,
    /// those that are being made meanwhile included.
    async fn end_members(&self, pod: &Key, signal: i32) -> Result<()> {
        let mut asked = Vec::new();
        loop {
            let containers = self.sandbox.containers().await.map_err(from_error)?;
            let mut living = containers
                .into_iter()
                .filter(|(id, status)| *id != pod.container && *status != Status::Stopped);
            let Some((id, status)) = living.find(|(id, _)| !asked.contains(id)) else {
                break;
            };
            if status == Status::Creating {
                sleep(BETWEEN_LOOKS).await;
                continue;
            }
            let key = Key::init(id.clone());
            let all = signal == libc::SIGKILL;
            // One that has ended meanwhile needs none.
            let _ = self.sandbox.signal(key, signal as u32, all).await;
            asked.push(id);
        }
        for id in asked {
            match self.sandbox.wait(Key::init(id)).await {
                // Somebody has removed it meanwhile.
                Ok(_) | Err(Error::NotFound) => {}
                Err(error) => return Err(from_error(error)),
            }
        }
        Ok(())
    }

    async fn end_container(&self, key: &Key, signal: i32) -> Result<()> {
        let sent = self.sandbox.signal(key.clone(), signal as u32, true).await;
        match sent {
            // There is none, or it has ended.
            Err(Error::NotFound | Error::Refused(_) | Error::Down(_)) => Ok(()),
            Err(error) => Err(from_error(error)),
            Ok(()) => {
                let waited = self.sandbox.wait(key.clone()).await;
                waited.map(drop).map_err(from_error)
            }
        }
    }

    /// Removes what is left of all containers.
    pub(super) async fn remove_all(&self) -> Result<()> {
        let containers = self.sandbox.containers().await.map_err(from_error)?;
        for id in containers.into_keys() {
            let key = Key::init(id);
            match self.sandbox.delete(key.clone(), true).await {
                Ok(_) | Err(Error::NotFound) => self.door.forget(&key),
                Err(error) => return Err(from_error(error)),
            }
        }
        Ok(())
    }
}
