//! What can be wrong with a network.

use std::{io, path::PathBuf};

use crate::{agent, ledger};

/// Why the guest has not the network that the namespace has.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace itself.
    #[error("network namespace {path}: {source}", path = path.display())]
    Namespace {
        /// As the client named it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused something.
    #[error("network: {what}: {source}")]
    Kernel {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The namespace belongs to another sandbox.
    #[error(
        "network namespace {path}: it is that of another container, which is in a virtual machine \
         of its own, and two machines cannot share one: give each container a network of its own",
        path = path.display()
    )]
    Taken {
        /// As the client named it.
        path: PathBuf,
    },
    /// An interface that cannot be connected.
    #[error("network interface {interface}: {reason}")]
    Refused {
        /// Its name.
        interface: String,
        /// Why not.
        reason: &'static str,
    },
    /// Too many interfaces.
    #[error(
        "the network has {interfaces} interfaces, and the machine has {slots} slots for devices; \
         raise machine.hotplug_slots"
    )]
    Slots {
        /// How many there are.
        interfaces: usize,
        /// How many could be.
        slots: u32,
    },
    /// The machine did not take or release a card.
    #[error("network interface {interface}: {source}")]
    Card {
        /// Its name.
        interface: String,
        /// Why not.
        source: casemate_hypervisor::Error,
    },
    /// The guest.
    #[error("network of the guest: {0}")]
    Agent(#[from] agent::Error),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The machine has ended.
    #[error("network: the virtual machine has ended")]
    Ended,
}
