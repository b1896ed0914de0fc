//! What can go wrong with a machine.

use std::{io, path::PathBuf, time::Duration};

use casemate_config::Tier;

use crate::Exit;

/// Why a machine could not be started or changed. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host cannot give the isolation that the configuration demands.
    #[error(
        "the isolation tier of this host is {tier}, but at least {min_tier} is demanded: {reason}"
    )]
    TooWeak {
        /// What the host offers.
        tier: Tier,
        /// What is demanded.
        min_tier: Tier,
        /// The evidence that decided.
        reason: String,
    },

    /// A file that a machine needs cannot be used.
    #[error("{what} {}: {source}", .path.display())]
    File {
        /// "guest kernel", "console log" …
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },

    /// The guest kernel is a file, but not one that can be started.
    #[error("guest kernel {}: {problem}", .path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        problem: &'static str,
    },

    /// The program is not the one that is expected, or too old.
    #[error("{}: {problem}", .path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// The machine is larger than the back end allows.
    #[error("{what}: {wanted} asked for, at most {most} possible")]
    TooLarge {
        /// "vcpus", "hotplug slots" …
        what: &'static str,
        /// What the specification says.
        wanted: u32,
        /// What the back end can do.
        most: u32,
    },

    /// The process of the program could not be made as it has to be.
    #[error("starting the virtual machine monitor: {step}: {source}")]
    Spawn {
        /// What was being done.
        step: String,
        /// The reason.
        source: io::Error,
    },

    /// The program ended before the machine was ready, or while a call was
    /// waiting for it.
    #[error("{0}")]
    Ended(Exit),

    /// No answer in time.
    #[error("the virtual machine monitor did not answer {command} within {after:?}")]
    Deadline {
        /// What it was asked; "start" for its first word.
        command: &'static str,
        /// How long it had.
        after: Duration,
    },

    /// The program refused a command.
    #[error("the virtual machine monitor refused {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its own words.
        reason: String,
    },

    /// The program said something that its protocol does not allow.
    #[error("the virtual machine monitor's answer to {command}: {problem}")]
    Protocol {
        /// The command.
        command: &'static str,
        /// What is wrong.
        problem: String,
    },

    /// Every hotplug slot is taken.
    #[error("all {slots} hotplug slots of the virtual machine are in use")]
    NoFreeSlot {
        /// How many there are.
        slots: u32,
    },

    /// No such device is plugged.
    #[error("no device {id} is plugged into the virtual machine")]
    NoDevice {
        /// The id.
        id: String,
    },

    /// A device cannot be plugged as described.
    #[error("device: {problem}")]
    Device {
        /// What is wrong.
        problem: &'static str,
    },

    /// The files of a template are not what a machine can be restored from.
    #[error("template: {problem}")]
    Template {
        /// What is wrong.
        problem: String,
    },

    /// A machine cannot be saved while it has devices that belong to one sandbox.
    #[error("the virtual machine cannot be saved: device {id} is plugged")]
    Plugged {
        /// One of them.
        id: String,
    },

    /// A machine cannot become smaller.
    #[error("{what}: the virtual machine has {has}, which cannot become {wanted}")]
    Shrink {
        /// "virtual processors" or "MiB of memory".
        what: &'static str,
        /// What it has.
        has: u32,
        /// What was asked for.
        wanted: u32,
    },

    /// A test asked for this failure.
    #[error("injected failure at step {step}")]
    Injected {
        /// Which step, counted from 1.
        step: u32,
    },
}
