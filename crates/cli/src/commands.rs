//! One file per verb.

pub mod check;
pub mod checkpoint;
pub mod containerd;
pub mod create;
pub mod delete;
pub mod devices;
pub mod events;
pub mod exec;
pub mod features;
pub mod install;
pub mod kill;
pub mod list;
pub mod memory;
pub mod monitor;
pub mod pause;
pub mod ps;
pub mod resume;
pub mod run;
pub mod spec;
pub mod stand_in;
pub mod start;
pub mod state;
pub mod template;
pub mod template_maker;
pub mod timeline;
pub mod update;
