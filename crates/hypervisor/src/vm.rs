//! What a running machine tells about itself.

use std::time::Duration;

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

/// What a machine costs the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// Processor time used by all threads.
    pub cpu_time: Duration,
    /// Proportional share of the memory in use, guest memory included.
    pub pss_bytes: u64,
}
