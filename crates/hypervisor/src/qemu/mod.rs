//! The back end for QEMU, 7.2 and later: a jailed process for each machine,
//! controlled over a socket that it inherits.

mod command_line;
mod commands;
mod installation;
mod lines;
mod machine;
mod open;
mod plug;
mod process;
mod qmp;
mod version;

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use casemate_config::{Accelerator as Choice, Config, Tier};
use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{sync::mpsc, time::timeout};

pub(crate) use self::version::Version;
use self::{
    command_line::{Accelerator, INITRD, KERNEL, Plan, Sockets},
    installation::Installation,
    machine::Machine,
    plug::Slots,
    process::{Process, spawning},
};
use crate::{
    BootSpec, Capabilities, Error, Hypervisor, Size, TemplateFiles, Vm, console, facts,
    jail::{Bind, BindKind, Descriptors, Jail},
    kernel_image::{check_initrd, check_kernel},
    tier::{self, Access, KVM_DEVICE},
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

    fn plan(&self, spec: &BootSpec, sockets: Sockets) -> Plan {
        let mut parameters =
            command_line::parameters(self.accelerator, spec.vcpus, self.counter_khz);
        parameters.extend(spec.parameters.iter().cloned());
        Plan {
            accelerator: self.accelerator,
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            hotplug_slots: spec.hotplug_slots,
            template: spec.template,
            firmware: self.installation.firmware(),
            parameters,
            sockets,
        }
    }

    fn binds(&self, spec: &BootSpec) -> Vec<Bind> {
        let mut binds = self.installation.binds();
        let mut show = |source: &Path, target: &str, kind| {
            binds.push(Bind {
                source: source.to_owned(),
                target: target.into(),
                kind,
            });
        };
        show(&spec.kernel, KERNEL, BindKind::Data);
        show(&spec.initrd, INITRD, BindKind::Data);
        let mut devices = vec!["/dev/null", "/dev/urandom"];
        if self.accelerator == Accelerator::Kvm {
            devices.push(KVM_DEVICE);
        }
        for device in devices {
            show(Path::new(device), device, BindKind::Device);
        }
        binds
    }

    /// The group that opens the device of KVM for an unprivileged user.
    fn supplementary_group(&self) -> Option<u32> {
        if self.accelerator != Accelerator::Kvm {
            return None;
        }
        match std::fs::metadata(KVM_DEVICE).map(|device| tier::access(&device)) {
            Ok(Access::Group(group)) => Some(group),
            _ => None,
        }
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn recipe(&self, spec: &BootSpec) -> Result<String, Error> {
        let sockets = Sockets {
            control: 0,
            console: 0,
            file_share: None,
            vsock: None,
        };
        let arguments = command_line::arguments(&self.plan(spec, sockets));
        let lines: Vec<_> = arguments
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        Ok(lines.join("\n"))
    }

    async fn restore(
        &self,
        _template: TemplateFiles,
        _spec: BootSpec,
    ) -> Result<Box<dyn Vm>, Error> {
        let problem = "QEMU's machines are not restored yet".to_owned();
        Err(Error::Template { problem })
    }

    async fn boot(&self, mut spec: BootSpec) -> Result<Box<dyn Vm>, Error> {
        self.check(&spec)?;
        let (console, console_socket) = console::open(&spec.console)?;
        let (control, control_socket) = UnixStream::pair().map_err(spawning("making a socket"))?;
        let (output, words) =
            pipe2(OFlag::O_CLOEXEC).map_err(|errno| spawning("making a pipe")(errno.into()))?;
        let mut descriptors = Descriptors::default();
        let (files, vsock) = (spec.file_share.is_some(), spec.vsock.is_some());
        let sockets = Sockets {
            control: descriptors.push(control_socket.into()),
            console: descriptors.push(console_socket),
            file_share: spec
                .file_share
                .take()
                .map(|share| (share.tag, descriptors.push(share.socket))),
            vsock: spec
                .vsock
                .take()
                .map(|vsock| descriptors.push(vsock.socket)),
        };
        let jail = Jail {
            program: self.installation.program.clone(),
            arguments: command_line::arguments(&self.plan(&spec, sockets)),
            environment: self.installation.environment(),
            binds: self.binds(&spec),
            descriptors,
            output: words,
            netns: spec.netns.take(),
            identity: spec.identity,
            supplementary_group: self.supplementary_group(),
        };
        let slots = match spec.template {
            true => Slots::of_template(spec.hotplug_slots, files, vsock),
            false => Slots::new(spec.hotplug_slots),
        };
        let size = Size {
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
        };
        // More reasons than one are not expected.
        let (told, shutdowns) = mpsc::channel(4);
        let machine = timeout(self.start_limit, async {
            let process = Process::start(jail, output, console, shutdowns).await?;
            Machine::connect(process, control, told, slots, size).await
        });
        match machine.await {
            Ok(machine) => Ok(Box::new(machine?)),
            Err(_) => Err(Error::Deadline {
                command: "start",
                after: self.start_limit,
            }),
        }
    }
}
