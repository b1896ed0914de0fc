//! The process of a pod's sandbox container: it holds the namespaces that the
//! members share, reaps who is left to it, and ends when it is told.
//!
//! It is a fork of the agent that executes nothing. What makes it harmless: it
//! has no rights and no descriptors, its root is an empty file system, and it
//! may not be looked into ([`super::begin`]). It is made before any other
//! container of its pod, so its copy of the agent's memory knows none of them.

use casemate_linux::{descriptor::close_from, process::show_as, reaping::Vigil};
use casemate_protocol::agent::{ContainerSpec, Process};
use nix::sys::prctl::set_name;

use super::{
    Prepared, Work, credentials,
    init::{become_root, enter_namespaces, names},
    namespaces::Plan,
    root::Root,
    sysctl, terminal,
};
use crate::{
    boot::CONTAINER_ROOT,
    container::stdio::ProcessEnds,
    error::{Doing, Result},
    timeline::Timeline,
};

/// Makes the calling process the first of a container without a program.
pub(crate) fn set_up<'a>(
    id: &str,
    spec: &ContainerSpec,
    plan: &Plan,
    ends: &ProcessEnds,
    born: u64,
) -> Result<Prepared<'a>> {
    let mut timeline = Timeline::since(born);
    enter_namespaces(id, plan)?;
    timeline.mark("namespaces");
    if plan.has_user() {
        become_root()?;
    }
    if let ProcessEnds::Files(files) = ends {
        terminal::use_files(files)?;
    }
    names(spec)?;
    sysctl::write_all(&spec.sysctls)?;
    Root::empty(CONTAINER_ROOT)?.enter(true, 0)?;
    timeline.mark("pivot");
    look_like_pause()?;
    credentials::assume(&powerless(&spec.process))?;
    timeline.mark("credentials");
    Ok(Prepared {
        work: Work::Pause,
        spans: timeline.into_spans(),
        terminal: None,
    })
}

/// What members with the same PID namespace see as their first process.
fn look_like_pause() -> Result<()> {
    set_name(c"pause").doing(|| "prctl PR_SET_NAME".into())?;
    // Not in a user namespace: then it goes by the agent's own command.
    let _ = show_as(c"/pause");
    Ok(())
}

/// The user of a process, without anything that it could do.
fn powerless(process: &Process) -> Process {
    Process {
        cwd: "/".into(),
        uid: process.uid,
        gid: process.gid,
        additional_gids: process.additional_gids.clone(),
        no_new_privileges: true,
        ..Default::default()
    }
}

/// Stays until it is told to go: the exit code.
pub(super) fn stay() -> Result<i32> {
    let vigil = Vigil::begin().doing(|| "wait for signals".into())?;
    // With the line to the agent, which takes that for the start.
    close_from(0).doing(|| "close descriptors".into())?;
    vigil.keep();
    Ok(0)
}
