//! The end-to-end suite: it runs the runtimes as users and their clients do
//! and links none of the project's crates.
//!
//! A [`Scenario`] is a function over a [`Host`] that is run once with each
//! [`Runtime`]: with runc, which proves the scenario, and with casemate. Every
//! run is a process of its own in a mount namespace of its own, with an empty
//! `/run` ([`isolation`]), so that scenarios may run beside each other and
//! beside the containers of the machine, and so that whatever a failed one has
//! left goes away with it. After a scenario has passed, nothing it has started
//! may be left ([`leak`]).
//!
//! What a scenario uses: [`Command`] (a program with a time limit), [`Typist`]
//! (one on a terminal), [`Podman`], [`Docker`], [`Containerd`] with its client,
//! [`Cri`](cri::Cri) (what Kubernetes does with containerd), [`Bundle`] and [`Container`]
//! (the OCI command line called as conmon calls it), [`processes`]. `tests/README.md` shows how to write one.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod cgroups;
pub mod command;
mod console;
pub mod container;
pub mod containerd;
pub mod cri;
pub mod docker;
pub mod expect;
mod host;
pub mod images;
pub mod isolation;
pub mod leak;
pub mod mounts;
pub mod network;
pub mod podman;
pub mod processes;
mod reaper;
pub mod runtime;
mod scenario;
mod suite;
pub mod templates;
pub mod wait;

pub use bundle::Bundle;
pub use command::{Command, Exit, Finished, Running, Size, Typist};
pub use console::ConsoleSocket;
pub use container::Container;
pub use containerd::Containerd;
pub use containerd_shim_protos as protos;
pub use docker::Docker;
pub use host::Host;
pub use images::{APPLICATIONS, BUSYBOX, DEBIAN, PAUSE};
pub use podman::Podman;
pub use runtime::{Kind, Runtime};
pub use scenario::{Scenario, Skip, without_templates};
pub use suite::{Module, alone, main};
