//! What a back end can do on this host.

use casemate_config::Tier;

use crate::Error;

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
    /// How large a machine that was started for a template can become.
    pub grown: Size,
}

/// How large a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl Size {
    /// Whether a machine that `has` something, and could have `most`, can be made
    /// as large as this.
    pub(crate) fn check(self, has: Self, most: Self) -> Result<(), Error> {
        let parts = [
            ("virtual processors", self.vcpus, has.vcpus, most.vcpus),
            (
                "MiB of memory",
                self.memory_mib,
                has.memory_mib,
                most.memory_mib,
            ),
        ];
        for (what, wanted, has, most) in parts {
            if wanted < has {
                return Err(Error::Shrink { what, has, wanted });
            }
            if wanted > most {
                return Err(Error::TooLarge { what, wanted, most });
            }
        }
        Ok(())
    }
}
