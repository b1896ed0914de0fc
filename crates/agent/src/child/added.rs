//! Joining a container: a process added to a running one, before exec.

use std::os::fd::BorrowedFd;

use casemate_protocol::agent::Process;
use nix::sys::stat::{Mode, umask};

use super::{
    Hooks, Prepared, Work, credentials,
    init::{become_root, new_session},
    namespaces::{self, Kinds},
    program::Program,
    root::Root,
    terminal,
};
use crate::{container::stdio::ProcessEnds, error::Result};

/// Makes the calling process one of a container, up to its exec. It was born
/// in the container's cgroup and PID namespace; `init` is a pidfd of the
/// container's first process, whose other namespaces it joins.
pub(crate) fn set_up<'a>(
    id: &str,
    process: &'a Process,
    kinds: Kinds,
    init: BorrowedFd<'_>,
    ends: &ProcessEnds,
) -> Result<Prepared<'a>> {
    let others = kinds - Kinds::CLONE_NEWPID;
    // One call for all: the kernel orders them rightly.
    namespaces::enter(init, others)?;
    new_session(id)?;
    if kinds.contains(Kinds::CLONE_NEWUSER) {
        become_root()?;
    }
    umask(Mode::empty());
    let terminal = match ends {
        ProcessEnds::Files(files) => {
            terminal::use_files(files)?;
            None
        }
        ProcessEnds::Terminal => Some(terminal::make(&Root::own()?, process, false)?),
    };
    let program = Program::find(credentials::assume(process)?)?;
    Ok(Prepared {
        work: Work::Program(program, Hooks::default()),
        spans: Vec::new(),
        terminal,
    })
}
