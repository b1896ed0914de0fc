//! containerd's messages in the sandbox's words, and back.

use std::path::PathBuf;

use casemate_sandbox::{GuestProcess, Id, Key, rootfs::RootMount, state::Status};
use containerd_shim_protos::{
    api,
    events::task::{TaskCreate, TaskIO},
    protobuf::{Message, MessageField, well_known_types::any::Any},
    shim::oci::ProcessDetails,
    types::{
        mount::Mount,
        task::{ProcessInfo, Status as TaskStatus},
    },
};
use ttrpc::Result;

use crate::status::{internal, invalid};

/// What containerd calls [`ProcessDetails`].
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

pub(super) fn root_mount(mount: &Mount) -> RootMount {
    RootMount {
        fstype: mount.type_.clone(),
        source: PathBuf::from(&mount.source),
        target: PathBuf::from(&mount.target),
        options: mount.options.clone(),
    }
}

/// What is told of a container that was made.
pub(super) fn created(request: api::CreateTaskRequest, pid: u32) -> TaskCreate {
    TaskCreate {
        container_id: request.id,
        bundle: request.bundle,
        rootfs: request.rootfs,
        io: MessageField::some(TaskIO {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            ..Default::default()
        }),
        pid,
        ..Default::default()
    }
}

/// A process of the guest, or with `hosts` the one on the host that stands for
/// it, if there is one.
pub(super) fn info(process: &GuestProcess, hosts: bool) -> Option<Result<ProcessInfo>> {
    let pid = match hosts {
        true => process.host_pid?,
        false => process.pid,
    };
    let exec = process.exec.as_deref().filter(|exec| !exec.is_empty());
    let details = exec.map(|exec| {
        let details = ProcessDetails {
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let value = details.write_to_bytes().map_err(internal)?;
        Ok(Any {
            type_url: PROCESS_DETAILS.to_owned(),
            value,
            ..Default::default()
        })
    });
    let info = details.transpose().map(|info| ProcessInfo {
        pid,
        info: MessageField::from_option(info),
        ..Default::default()
    });
    Some(info)
}

pub(super) fn id(text: &str) -> Result<Id> {
    Id::new(text).map_err(invalid)
}

pub(super) fn key(container: &str, exec: &str) -> Result<Key> {
    Ok(Key {
        container: id(container)?,
        exec: match exec {
            "" => None,
            exec => Some(id(exec)?),
        },
    })
}

pub(super) fn task_status(status: Status) -> TaskStatus {
    match status {
        Status::Creating => TaskStatus::UNKNOWN,
        Status::Created => TaskStatus::CREATED,
        Status::Running => TaskStatus::RUNNING,
        Status::Paused => TaskStatus::PAUSED,
        Status::Stopped => TaskStatus::STOPPED,
    }
}
