//! The back end for QEMU, 7.2 and later: a jailed process for each machine,
//! controlled over a socket that it inherits.

mod command_line;
mod commands;
mod installation;
mod kernel_line;
mod lines;
mod machine;
mod migration;
mod open;
mod plug;
mod process;
mod qmp;
mod recipe;
mod resize;
mod restore;
mod snapshot;
mod start;
mod version;

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use casemate_config::{Accelerator as Choice, Config, Ksm, Tier};
use tokio::time::{error::Elapsed, timeout};

pub(crate) use self::version::Version;
use self::{command_line::Accelerator, installation::Installation, machine::Machine};
use crate::{
    BootSpec, Capabilities, Error, Hypervisor, TemplateFiles, Vm, facts,
    kernel_image::{check_initrd, check_kernel},
};

/// What the configuration says about this back end.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program.
    pub program: PathBuf,
    /// What may execute the guest's instructions.
    pub accelerator: Choice,
    /// The weakest tier that is acceptable.
    pub min_tier: Tier,
    /// MiB of translated code that an emulated machine may hold.
    pub translation_buffer_mib: u32,
    /// Whether the host's kernel may merge equal pages of the machine.
    pub merge_memory: bool,
    /// How long QEMU may take from its start to its first word, which it says
    /// when the guest starts running.
    pub start_limit: Duration,
    /// Where facts about the host are remembered between starts.
    pub facts: PathBuf,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            program: config.qemu.path.clone(),
            accelerator: config.vmm.accelerator,
            min_tier: config.vmm.min_tier,
            translation_buffer_mib: config.qemu.translation_buffer_mib,
            merge_memory: config.vmm.ksm == Ksm::On,
            start_limit: Duration::from_secs(config.vmm.boot_timeout_s.into()),
            facts: facts::DEFAULT_PATH.into(),
        }
    }
}

/// QEMU on this host.
#[derive(Debug)]
pub struct Qemu {
    installation: Installation,
    capabilities: Capabilities,
    accelerator: Accelerator,
    /// Rate of the host's time stamp counter, which an emulated guest sees too.
    counter_khz: Option<u64>,
    merge_memory: bool,
    start_limit: Duration,
}

impl Qemu {
    fn check(&self, spec: &BootSpec) -> Result<(), Error> {
        let limits = [
            (
                "virtual processors",
                spec.vcpus,
                self.capabilities.max_vcpus,
            ),
            (
                "hotplug slots",
                spec.hotplug_slots,
                self.capabilities.max_hotplug_slots,
            ),
        ];
        for (what, wanted, most) in limits {
            if wanted > most {
                return Err(Error::TooLarge { what, wanted, most });
            }
        }
        check_kernel(&spec.kernel)?;
        check_initrd(&spec.initrd)
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn recipe(&self, spec: &BootSpec) -> Result<String, Error> {
        self.recipe_of(spec)
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Vm>, Error> {
        self.check(&spec)?;
        let machine = timeout(self.start_limit, self.cold(spec));
        Ok(Box::new(self.in_time(machine.await)?))
    }

    async fn restore(&self, template: TemplateFiles, spec: BootSpec) -> Result<Box<dyn Vm>, Error> {
        self.check(&spec)?;
        let machine = timeout(self.start_limit, self.restored(template, spec));
        Ok(Box::new(self.in_time(machine.await)?))
    }
}

impl Qemu {
    fn in_time(&self, machine: Result<Result<Machine, Error>, Elapsed>) -> Result<Machine, Error> {
        machine.unwrap_or(Err(Error::Deadline {
            command: "start",
            after: self.start_limit,
        }))
    }
}
