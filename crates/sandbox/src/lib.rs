//! The pod: one virtual machine and the containers in it, from the host's side.
//!
//! Front doors (the OCI command line through the monitor, containerd's shim)
//! hold a [`Handle`] and nothing else. Behind it one owner task ([`mod@owner`])
//! has all the state; [`policy`] says what is allowed when; [`machine`] brings
//! the VM up in phases, as a clone of a [`template`] where one fits; [`ledger`] knows what there is to undo; [`spec`] splits
//! `config.json` between host and guest.
//!
//! A sandbox lives in a process of its own with one thread: it has a mount
//! namespace of its own, and its children die with that thread.

#![forbid(unsafe_code)]

pub mod agent;
pub mod cgroup;
pub mod claim;
mod container;
mod device_process;
mod disk;
pub mod error;
pub mod facade;
mod handle;
pub mod hooks;
pub mod identifier;
mod inbox;
mod key;
pub mod layout;
pub mod ledger;
pub mod machine;
pub mod memory;
pub mod neighbours;
pub mod network;
mod oom;
mod owner;
pub mod pod;
pub mod pod_files;
pub mod policy;
pub mod processes;
pub mod rootfs;
pub mod settings;
pub mod share;
pub mod size;
pub mod spec;
pub mod stand_in;
pub mod state;
pub mod stdio;
mod tasks;
pub mod template;
pub mod timeline;
mod turn;

pub use casemate_hypervisor::Size;
pub use container::{ExitStatus, LOST};
pub use device_process::{LOG as DEVICES_LOG, VERB as DEVICES_VERB};
pub use error::{Error, Kind};
pub use handle::{CgroupFiles, Create, GuestProcess, Handle, News, ProcessState, Stop};
pub use identifier::Id;
pub use inbox::Inbox;
pub use key::Key;
pub use machine::{CONSOLE_LOG, Client, Listener, Options};
pub use owner::open;
