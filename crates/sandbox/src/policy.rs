//! What is allowed when: a pure function of the operation and the state of the
//! process it is meant for. The table below is the whole policy.
//!
//! | state     | start | signal | delete | forced delete | exec | resize | pause | resume | update |
//! |-----------|-------|--------|--------|---------------|------|--------|-------|--------|--------|
//! | creating  |  no   |  no    |  no    |  yes          |  no  |  no    |  no   |  no    |  no    |
//! | created   |  yes  |  yes   |  yes¹  |  yes          |  yes |  yes   |  yes  |  no    |  yes   |
//! | running   |  no   |  yes   |  no    |  yes          |  yes |  yes   |  yes  |  no    |  yes   |
//! | paused    |  no   |  yes   |  no    |  yes          |  yes²|  yes   |  no   |  yes   |  yes   |
//! | stopped   |  no   |  no    |  yes   |  yes          |  no  |  no    |  no   |  no    |  no    |
//!
//! ¹ An init that never ran is killed by delete, as runc does.
//!
//! ² The process is made when the container goes on.

use crate::state::Status;

/// What somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Let a created process run.
    Start,
    /// Send a signal.
    Signal,
    /// Remove what has ended.
    Delete,
    /// End and remove, whatever the state.
    ForceDelete,
    /// Add a process to the container.
    Exec,
    /// Change the size of the terminal.
    Resize,
    /// Freeze every process of the container.
    Pause,
    /// Let a paused container go on.
    Resume,
    /// Change limits.
    Update,
}

/// Why an operation is not possible now. The texts are runc's where clients
/// match them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Signal or exec on something that has ended or not begun.
    #[error("container not running")]
    NotRunning,
    /// Start of what runs.
    #[error("cannot start an already running container")]
    AlreadyRunning,
    /// Start of what has ended.
    #[error("cannot start a container that has stopped")]
    Stopped,
    /// Start or pause of what is paused.
    #[error("container is paused; resume it first")]
    Paused,
    /// Resume of what is not paused.
    #[error("container not paused")]
    NotPaused,
    /// Start of what is not ready.
    #[error("container is still being created")]
    StillCreating,
    /// Delete without force of something alive.
    #[error("cannot delete container that is not stopped: {0}")]
    NotStopped(Status),
}

/// Whether `operation` is allowed on a process in `status`.
///
/// # Errors
/// The reason why it is not.
pub fn allow(operation: Operation, status: Status) -> Result<(), Refusal> {
    use Operation::*;
    match (operation, status) {
        (ForceDelete, _) => Ok(()),
        (Start, Status::Created) => Ok(()),
        (Start, Status::Creating) => Err(Refusal::StillCreating),
        (Start, Status::Running) => Err(Refusal::AlreadyRunning),
        (Start | Pause, Status::Paused) => Err(Refusal::Paused),
        (Start, Status::Stopped) => Err(Refusal::Stopped),
        (Signal | Exec | Resize | Update, Status::Created | Status::Running | Status::Paused) => {
            Ok(())
        }
        (Pause, Status::Created | Status::Running) => Ok(()),
        (Resume, Status::Paused) => Ok(()),
        (Resume, Status::Created | Status::Running) => Err(Refusal::NotPaused),
        (Signal | Exec | Resize | Update | Pause | Resume, _) => Err(Refusal::NotRunning),
        (Delete, Status::Created | Status::Stopped) => Ok(()),
        (Delete, status) => Err(Refusal::NotStopped(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Operation::*, *};

    const STATES: [Status; 5] = [
        Status::Creating,
        Status::Created,
        Status::Running,
        Status::Paused,
        Status::Stopped,
    ];

    /// The table of the module's documentation, row by row.
    #[test]
    fn the_table_holds() {
        let table = [
            (Start, [false, true, false, false, false]),
            (Signal, [false, true, true, true, false]),
            (Delete, [false, true, false, false, true]),
            (ForceDelete, [true, true, true, true, true]),
            (Exec, [false, true, true, true, false]),
            (Resize, [false, true, true, true, false]),
            (Pause, [false, true, true, false, false]),
            (Resume, [false, false, false, true, false]),
            (Update, [false, true, true, true, false]),
        ];
        for (operation, row) in table {
            for (status, expected) in STATES.into_iter().zip(row) {
                assert_eq!(
                    allow(operation, status).is_ok(),
                    expected,
                    "{operation:?} when {status}"
                );
            }
        }
    }

    #[test]
    fn nothing_alive_is_beyond_reach() {
        for status in STATES {
            let reachable = allow(Signal, status).is_ok()
                || allow(Delete, status).is_ok()
                || status == Status::Creating;
            assert!(reachable, "{status}");
            assert!(allow(ForceDelete, status).is_ok());
        }
    }
}
