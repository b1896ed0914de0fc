//! Requests that the guest answers by itself.

use std::collections::BTreeMap;

use casemate_protocol::agent as message;
use tokio::{sync::mpsc::UnboundedSender, task::spawn_local};

use super::report;
use crate::{
    agent::{Agent, printable},
    container::Reply,
    error::Error,
    handle::{CgroupFiles, GuestProcess},
    key::Key,
    owner::Event,
};

/// Sends a signal.
pub(crate) fn spawn_signal(key: &Key, agent: Agent, signal: u32, all: bool, reply: Reply<()>) {
    let request = signal_request(key, signal, all);
    spawn_local(async move {
        let result = agent.signal_process(&request).await;
        let _ = reply.send(result.map(drop).map_err(Error::from));
    });
}

pub(super) fn signal_request(key: &Key, signal: u32, all: bool) -> message::SignalProcessRequest {
    message::SignalProcessRequest {
        container_id: key.container.to_string(),
        exec_id: key.exec_id().to_owned(),
        signal,
        all,
        ..Default::default()
    }
}

/// Sets the size of a terminal.
pub(crate) fn spawn_resize(key: &Key, agent: Agent, columns: u32, rows: u32, reply: Reply<()>) {
    let request = message::ResizeTerminalRequest {
        container_id: key.container.to_string(),
        exec_id: key.exec_id().to_owned(),
        columns,
        rows,
        ..Default::default()
    };
    spawn_local(async move {
        let result = agent.resize_terminal(&request).await;
        let _ = reply.send(result.map(drop).map_err(Error::from));
    });
}

/// Lists the processes of a container. `host_pids` are those of the stand-ins
/// by exec id, "" for the init.
pub(crate) fn spawn_list(
    key: &Key,
    agent: Agent,
    host_pids: BTreeMap<String, Option<u32>>,
    reply: Reply<Vec<GuestProcess>>,
) {
    let request = key.container();
    spawn_local(async move {
        let result = agent.list_processes(&request).await;
        let processes = result.map_err(Error::from).map(|response| {
            let processes = response.processes.into_iter();
            processes
                .map(|process| GuestProcess {
                    pid: process.pid,
                    parent: process.parent,
                    uid: process.uid,
                    started_at_ns: process.started_at_ns,
                    cpu_ns: process.cpu_ns,
                    terminal: process.terminal,
                    command: printable(&process.command),
                    host_pid: process
                        .exec_id
                        .as_ref()
                        .and_then(|exec| host_pids.get(exec).copied().flatten()),
                    exec: process.exec_id.filter(|exec| host_pids.contains_key(exec)),
                })
                .collect()
        });
        let _ = reply.send(processes);
    });
}

/// Stops the processes of a container, or lets them go on.
pub(crate) fn spawn_freeze(
    key: Key,
    agent: Agent,
    frozen: bool,
    reply: Reply<()>,
    events: UnboundedSender<Event>,
) {
    let request = message::FreezeContainerRequest {
        container_id: key.container.to_string(),
        frozen,
        ..Default::default()
    };
    spawn_local(async move {
        let result = agent.freeze_container(&request).await;
        let result = result.map(drop).map_err(Error::from);
        report(&events, Event::Frozen(key, frozen, result, reply));
    });
}

/// Changes the settings of a container's cgroup in the guest.
pub(crate) fn spawn_update(
    key: &Key,
    agent: Agent,
    settings: BTreeMap<String, String>,
    reply: Reply<()>,
) {
    let request = message::UpdateContainerRequest {
        container_id: key.container.to_string(),
        settings: settings.into_iter().collect(),
        ..Default::default()
    };
    spawn_local(async move {
        let result = agent.update_container(&request).await;
        let _ = reply.send(result.map(drop).map_err(Error::from));
    });
}

/// Reads what a container has used.
pub(crate) fn spawn_stats(key: &Key, agent: Agent, reply: Reply<CgroupFiles>) {
    let request = key.container();
    spawn_local(async move {
        let result = agent.container_stats(&request).await;
        let files = result.map(|response| response.files.into_iter().collect());
        let _ = reply.send(files.map_err(Error::from));
    });
}

/// Lets the guest forget an ended exec.
pub(crate) fn spawn_forget(key: &Key, agent: Agent) {
    let request = key.process();
    spawn_local(async move {
        if let Err(error) = agent.remove_process(&request).await {
            tracing::warn!(%error, "the guest did not forget a process");
        }
    });
}
