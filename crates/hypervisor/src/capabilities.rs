//! What a back end can do on this host.

use casemate_config::Tier;

/// Facts about a [`crate::Hypervisor`], asked before rather than met as errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The program and its version: "QEMU 7.2.22".
    pub program: String,
    /// How strong the wall around its machines is.
    pub tier: Tier,
    /// Most virtual processors of one machine.
    pub max_vcpus: u32,
    /// Most devices that can be plugged into one running machine.
    pub max_hotplug_slots: u32,
}
