//! How a machine ended.

use std::fmt;

use casemate_linux::process;

/// The end of the program that ran a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Why it ended.
    pub cause: Cause,
    /// How the process ended.
    pub status: process::Exit,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The guest switched itself off.
    PowerOff,
    /// The guest restarted itself, which ends it.
    Reset,
    /// The guest's kernel gave up; its own words, made printable.
    GuestPanic(String),
    /// [`crate::Vm::kill`] was called, or the machine was dropped.
    Killed,
    /// The program ended on its own or was killed by somebody else; its last
    /// words on stderr, if any.
    Program(Option<String>),
}

impl Exit {
    /// Whether guest or caller wanted it.
    pub fn is_orderly(&self) -> bool {
        matches!(self.cause, Cause::PowerOff | Cause::Reset | Cause::Killed)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::PowerOff => write!(f, "the guest switched itself off"),
            Cause::Reset => write!(f, "the guest restarted itself"),
            Cause::GuestPanic(words) => write!(f, "the guest's kernel failed: {words}"),
            Cause::Killed => write!(f, "the virtual machine was stopped"),
            Cause::Program(None) => write!(f, "the virtual machine monitor {}", self.status),
            Cause::Program(Some(words)) => {
                write!(f, "the virtual machine monitor {}: {words}", self.status)
            }
        }
    }
}
