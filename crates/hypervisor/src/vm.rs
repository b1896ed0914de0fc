//! What a running machine tells about itself.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A thread of the program that runs the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its id in the caller's PID namespace.
    pub tid: u32,
    /// What it does.
    pub role: ThreadRole,
}

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadRole {
    /// Runs the virtual processor of this index.
    Vcpu(u32),
    /// Runs every virtual processor in turn (an emulator's round robin).
    AllVcpus,
    /// Serves devices, or the program itself.
    Other,
}

/// Something that was done until a machine ran, on CLOCK_MONOTONIC. Steps may
/// overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What was done.
    pub name: &'static str,
    /// When that began, in nanoseconds.
    pub begin_ns: u64,
    /// When it was done.
    pub end_ns: u64,
}

impl Step {
    /// One that is done now.
    pub(crate) fn until_now(name: &'static str, begin_ns: u64) -> Self {
        Self {
            name,
            begin_ns,
            end_ns: now_ns(),
        }
    }
}

/// The clock of [`Step`].
pub(crate) fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// What a machine costs the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// Processor time used by all threads.
    pub cpu_time: Duration,
    /// Proportional share of the memory in use, guest memory included.
    pub pss_bytes: u64,
}
