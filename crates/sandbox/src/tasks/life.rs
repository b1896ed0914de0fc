//! Processes are watched until they end.

use std::{rc::Rc, sync::Arc, time::Duration};

use casemate_linux::{process::Child, reactor};
use tokio::{io::AsyncReadExt, sync::mpsc::UnboundedSender, task::spawn_local, time::timeout};

use super::{report, requests::signal_request};
use crate::{
    agent::Agent,
    container::ExitStatus,
    key::Key,
    machine::Ready,
    oom::Notice,
    owner::Event,
    stand_in::{OUTLIVED, StandIn, TerminalSize},
    stdio::Outputs,
};

/// Waits for the end of a process, then for the end of its output, which goes on
/// after `patience`, if there is one. A guest that cannot say when its process
/// ends is of no use: its VM goes, and the machine's watch reports that.
pub(crate) fn spawn_wait(
    key: Key,
    ready: &Ready,
    mut outputs: Outputs,
    patience: Option<Duration>,
    notice: Rc<Notice>,
    events: UnboundedSender<Event>,
) {
    let agent = ready.agent.clone();
    let vm = Arc::clone(&ready.vm);
    spawn_local(async move {
        let response = match agent.wait_process(&key.process()).await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(process = %key, %error, "cannot wait for it, ending the machine");
                return vm.kill();
            }
        };
        if response.oom_killed {
            tell(key.container.as_str(), &notice).await;
        }
        let exit = ExitStatus::now(response.exit_status);
        match patience {
            // Whoever does not read must not keep the process from ending.
            Some(patience) => _ = timeout(patience, outputs.drained()).await,
            None => outputs.drained().await,
        }
        report(&events, Event::Ended(key, exit));
        outputs.drained().await;
    });
}

/// Tells a container's client when the guest has killed one of its processes for
/// want of memory; the container may live on.
pub(crate) fn spawn_memory_watch(key: &Key, agent: Agent, notice: Rc<Notice>) {
    let container = key.container();
    spawn_local(async move {
        // Else it has ended, or the machine has: there is nothing to tell.
        if let Ok(true) = agent.await_out_of_memory(&container).await {
            tell(&container.container_id, &notice).await;
        }
    });
}

async fn tell(container: &str, notice: &Notice) {
    tracing::warn!(container, "the guest ran out of memory for it");
    if let Err(error) = notice.tell().await {
        tracing::warn!(container, %error, "its client is not told of that");
    }
}

/// Hears what the stand-in of a process reports, until it ends.
/// One that is a child of ours is reaped then.
pub(crate) fn spawn_stand_in_watch(
    key: Key,
    stand_in: &StandIn,
    child: Option<Child>,
    events: UnboundedSender<Event>,
) {
    let reports = stand_in.reports().and_then(|socket| {
        socket.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(socket)
    });
    let mut reports = match reports {
        Ok(reports) => reports,
        Err(error) => return tracing::error!(process = %key, %error, "stand-in is not watched"),
    };
    spawn_local(async move {
        let mut word = [0; 4];
        let mut released = false;
        while reports.read_exact(&mut word).await.is_ok() {
            if word == OUTLIVED {
                released = true;
                continue;
            }
            let size = TerminalSize::from_bytes(word);
            report(&events, Event::TerminalSize(key.clone(), size));
        }
        if !released {
            report(&events, Event::StandInGone(key));
        }
        if let Some(child) = child
            && let Err(error) = reap(&child).await
        {
            tracing::warn!(pid = child.pid(), %error, "a stand-in cannot be reaped");
        }
    });
}

/// Waits for the end of a child without standing in anybody's way.
async fn reap(child: &Child) -> std::io::Result<()> {
    let pidfd = child.pidfd().try_clone_to_owned()?;
    reactor::register_readable(pidfd)?
        .readable()
        .await?
        .retain_ready();
    child.try_wait().map(drop)
}

/// Kills a process without being asked twice; an init with its container.
pub(crate) fn spawn_kill(key: Key, agent: Agent) {
    spawn_local(async move {
        let request = signal_request(&key, nix::libc::SIGKILL as u32, key.exec.is_none());
        if let Err(error) = agent.signal_process(&request).await {
            tracing::warn!(process = %key, %error, "cannot kill");
        }
    });
}
