//! What takes time, away from the owner: each task does its steps and reports
//! with one [`Event`], or answers its caller itself when nothing changes.

mod bundle;
mod life;
mod machine;
mod making;
mod removal;
mod requests;

use std::time::SystemTime;

use tokio::sync::mpsc::UnboundedSender;

use crate::owner::Event;

pub(crate) use bundle::{ReadBundle, read_bundle};
pub(crate) use life::{spawn_kill, spawn_memory_watch, spawn_stand_in_watch, spawn_wait};
pub(crate) use machine::{spawn_boot, spawn_desertion, spawn_power_off, spawn_watch};
pub(crate) use making::{
    Creation, Made, has_hooks, hook_time, spawn_create, spawn_exec, spawn_poststart, spawn_start,
};
pub(crate) use removal::{Remains, spawn_removal};
pub(crate) use requests::{
    spawn_forget, spawn_freeze, spawn_list, spawn_resize, spawn_signal, spawn_stats, spawn_update,
};

/// Now, as the state file has it.
pub(crate) fn timestamp() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

/// Without an owner the sandbox is ending, and news are of no use.
fn report(events: &UnboundedSender<Event>, event: Event) {
    let _ = events.send(event);
}
