//! Events in containerd's words (containerd.events).

use casemate_sandbox::{Key, News};
use containerd_shim_protos::{
    events::task::{
        TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
        TaskStart,
    },
    protobuf::{Message, MessageDyn, well_known_types::any::Any},
};

use super::Event;
use crate::status::timestamp;

/// Topic and message of an event.
pub(super) fn encode(event: Event) -> Option<(&'static str, Any)> {
    let id = |key: &Key| key.container.to_string();
    match event {
        Event::Created(event) => any("/tasks/create", &*event),
        Event::ExecAdded(key) => any(
            "/tasks/exec-added",
            &TaskExecAdded {
                container_id: id(&key),
                exec_id: key.exec_id().to_owned(),
                ..Default::default()
            },
        ),
        Event::Deleted(key, pid, exit) => any(
            "/tasks/delete",
            &TaskDelete {
                container_id: id(&key),
                pid,
                exit_status: exit.code,
                exited_at: timestamp(Some(exit)),
                ..Default::default()
            },
        ),
        Event::News(news) => of_news(news),
        Event::Last => None,
    }
}

fn of_news(news: News) -> Option<(&'static str, Any)> {
    let name = |key: &Key| key.container.to_string();
    match news {
        News::Started(key, pid) if key.exec.is_some() => any(
            "/tasks/exec-started",
            &TaskExecStarted {
                container_id: name(&key),
                exec_id: key.exec_id().to_owned(),
                pid,
                ..Default::default()
            },
        ),
        News::Started(key, pid) => any(
            "/tasks/start",
            &TaskStart {
                container_id: name(&key),
                pid,
                ..Default::default()
            },
        ),
        News::Exited(key, pid, exit) => any(
            "/tasks/exit",
            &TaskExit {
                container_id: name(&key),
                // That of the container's own process is the container's.
                id: match key.exec_id() {
                    "" => name(&key),
                    exec => exec.to_owned(),
                },
                pid,
                exit_status: exit.code,
                exited_at: timestamp(Some(exit)),
                ..Default::default()
            },
        ),
        News::OutOfMemory(id) => any(
            "/tasks/oom",
            &TaskOOM {
                container_id: id.to_string(),
                ..Default::default()
            },
        ),
        News::Paused(id) => any(
            "/tasks/paused",
            &TaskPaused {
                container_id: id.to_string(),
                ..Default::default()
            },
        ),
        News::Resumed(id) => any(
            "/tasks/resumed",
            &TaskResumed {
                container_id: id.to_string(),
                ..Default::default()
            },
        ),
    }
}

/// As containerd registers its events: the full name, without a host.
fn any<M: Message + MessageDyn>(topic: &'static str, event: &M) -> Option<(&'static str, Any)> {
    let value = event.write_to_bytes();
    let value = value.inspect_err(|error| tracing::error!(topic, %error, "event"));
    let type_url = event.descriptor_dyn().full_name().to_owned();
    value.ok().map(|value| {
        (
            topic,
            Any {
                type_url,
                value,
                ..Default::default()
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use casemate_sandbox::{ExitStatus, Id};

    use super::*;

    #[test]
    fn the_end_of_an_exec_is_told_by_its_own_id() {
        let exit = ExitStatus::now(3);
        for (exec, id) in [(None, "web"), (Some("e"), "e")] {
            let key = Key {
                container: Id::new("web").unwrap(),
                exec: exec.map(|exec| Id::new(exec).unwrap()),
            };
            let (topic, event) = of_news(News::Exited(key, 9, exit)).unwrap();
            let event = TaskExit::parse_from_bytes(&event.value).unwrap();
            assert_eq!(topic, "/tasks/exit");
            assert_eq!(
                (event.container_id.as_str(), event.id.as_str()),
                ("web", id)
            );
            assert_eq!((event.pid, event.exit_status), (9, 3));
        }
    }
}
