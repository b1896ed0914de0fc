//! One file per verb.

pub mod check;
pub mod create;
pub mod delete;
pub mod devices;
pub mod features;
pub mod kill;
pub mod list;
pub mod monitor;
pub mod run;
pub mod spec;
pub mod stand_in;
pub mod start;
pub mod state;
pub mod timeline;
