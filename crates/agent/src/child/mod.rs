//! What happens in a new process until it executes its program.
//!
//! Everything here runs after a fork, in a process with one thread and without
//! an async runtime; it talks to the agent over a [`ChildLink`] only and may
//! block. Nothing of it can harm the agent but through the kernel.

use std::os::fd::{BorrowedFd, OwnedFd};

use casemate_linux::{
    disposition,
    inheritance::close_all_except,
    process::{Birth, spawn},
};
use casemate_protocol::agent::{Hook, Span};
use nix::sys::prctl::set_dumpable;

use crate::{
    container::link::ChildLink,
    error::{Doing, Result},
};

pub(crate) mod added;
mod copy_up;
mod credentials;
mod devices;
mod hooks;
pub(crate) mod init;
mod masks;
mod mounts;
pub(crate) mod namespaces;
pub(crate) mod pause;
mod program;
mod root;
pub(crate) mod sysctl;
mod terminal;

use namespaces::Plan;
use program::Program;

/// Exit code of a process that could not become its program; nobody is told
/// it but a host that asks in spite of the error that it got.
const FAILED: i32 = 1;

/// A process that only has to begin its work.
pub(crate) struct Prepared<'a> {
    work: Work<'a>,
    spans: Vec<Span>,
    /// Master of its terminal, which the agent takes a copy of.
    terminal: Option<OwnedFd>,
}

/// What a process is for.
enum Work<'a> {
    /// To execute a program, after hooks.
    Program(Program<'a>, Hooks<'a>),
    /// To be there for others.
    Pause,
}

/// Hooks with their standard input.
#[derive(Default)]
pub(crate) struct Hooks<'a> {
    list: &'a [Hook],
    state: &'a [u8],
}

/// Body of a child: sets up, reports, waits for the start, does its work. `keep`
/// are the descriptors it needs; every other one of the agent's is closed, so
/// that no stream of another process stays open here.
pub(crate) fn run<'a>(
    link: &ChildLink,
    keep: &[BorrowedFd<'_>],
    set_up: impl FnOnce() -> Result<Prepared<'a>>,
) -> i32 {
    become_program(link, keep, set_up).unwrap_or_else(|error| {
        link.failed(&error);
        FAILED
    })
}

fn become_program<'a>(
    link: &ChildLink,
    keep: &[BorrowedFd<'_>],
    set_up: impl FnOnce() -> Result<Prepared<'a>>,
) -> Result<i32> {
    begin(link, keep)?;
    if !link.told() {
        return Ok(FAILED);
    }
    let prepared = set_up()?;
    disposition::exit_when_told().doing(|| "catch signals".into())?;
    link.ready(prepared.spans, prepared.terminal.as_ref())?;
    if !link.told() {
        return Ok(FAILED);
    }
    match prepared.work {
        Work::Program(program, hooks) => {
            hooks::run(hooks.list, hooks.state)?;
            match program.execute()? {}
        }
        Work::Pause => pause::stay(),
    }
}

/// Sheds what a fork has inherited from the agent.
fn begin(link: &ChildLink, keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut keep = keep.to_vec();
    keep.extend(link.descriptors());
    close_all_except(&keep).doing(|| "close descriptors".into())?;
    disposition::reset_all();
    // Until exec this is the agent's program with the agent's memory: nobody
    // in the container may look into it.
    set_dumpable(false).doing(|| "prctl PR_SET_DUMPABLE".into())
}

/// Body of a go-between: joins the namespaces of `plan`, makes the process
/// (`body`) there and reports it.
pub(crate) fn go_between(
    plan: &Plan,
    link: &ChildLink,
    keep: &[BorrowedFd<'_>],
    body: &impl Fn() -> i32,
) -> i32 {
    let made = begin(link, keep).and_then(|()| {
        plan.join_all()?;
        let birth = Birth {
            namespaces: Some(plan.at_birth()),
            ..Birth::default()
        };
        let child = spawn(birth, body).doing(|| "make a process".into())?;
        link.made(child.pid())
    });
    match made {
        Ok(()) => 0,
        Err(error) => {
            link.failed(&error);
            FAILED
        }
    }
}
