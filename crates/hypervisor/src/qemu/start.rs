//! The start of QEMU: what a machine is given, and the process.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::sync::mpsc;

use super::{
    Qemu,
    command_line::{self, Accelerator, INITRD, KERNEL, Plan, Sockets, Template},
    kernel_line,
    machine::{Machine, Parts},
    plug::Slots,
    process::{Process, spawning},
};
use crate::{
    BootSpec, Error, Parameter, Size,
    console::{self, Console},
    jail::{Bind, BindKind, Descriptors, Jail},
    memory,
    tier::{self, Access, KVM_DEVICE},
};

/// All that the process is made of.
pub(super) struct Start {
    jail: Jail,
    output: OwnedFd,
    console: Console,
    control: UnixStream,
    slots: Slots,
    size: Size,
    most: Size,
    /// The memory of a machine for templates.
    pub(super) memory: Option<File>,
}

impl Start {
    /// Starts the process and waits until it listens: then a cold machine runs,
    /// and one that is restored waits for its state.
    pub(super) async fn run(self) -> Result<Machine, Error> {
        // More reasons than one are not expected.
        let (told, shutdowns) = mpsc::channel(4);
        let process = Process::start(self.jail, self.output, self.console, shutdowns).await?;
        let parts = Parts {
            slots: self.slots,
            size: self.size,
            most: self.most,
            memory: self.memory,
        };
        Machine::connect(process, self.control, told, parts).await
    }
}

impl Qemu {
    /// Starts a machine from nothing.
    ///
    /// QEMU describes to the guest each function that the machine starts with, and
    /// from version 8 on tells the first of a slot once for each that it shall
    /// leave (hw/acpi/pci-bridge.c, hw/i386/acpi-build.c: DVNT). The guest takes the
    /// whole slot out the first time. What it has heard the other time it may still
    /// have before it when it is saved, and a clone would begin by taking out what
    /// it was given.
    pub(super) async fn cold(&self, spec: BootSpec) -> Result<Machine, Error> {
        spec.check_boot()?;
        self.prepare(spec, false)?.run().await
    }

    /// Opens and makes what the process needs.
    pub(super) fn prepare(&self, mut spec: BootSpec, restored: bool) -> Result<Start, Error> {
        let (console, console_socket) = console::open(&spec.console)?;
        let (control, control_socket) = UnixStream::pair().map_err(spawning("making a socket"))?;
        let (output, words) =
            pipe2(OFlag::O_CLOEXEC).map_err(|errno| spawning("making a pipe")(errno.into()))?;
        let (mount, memory) = match spec.template {
            true => {
                let bytes = u64::from(spec.memory_mib) << 20;
                let made = memory::make(bytes, spec.identity);
                let (mount, memory) = made.map_err(spawning("making its memory"))?;
                (Some(mount), Some(memory))
            }
            false => (None, None),
        };
        let slots = match spec.template {
            true => Slots::of_template(spec.hotplug_slots, spec.vsock.is_some()),
            false => Slots::new(spec.hotplug_slots),
        };
        let mut descriptors = Descriptors::default();
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
            arguments: command_line::arguments(&self.plan(&spec, sockets, restored)),
            environment: self.installation.environment(),
            binds: self.binds(&spec),
            memory: mount,
            descriptors,
            output: words,
            netns: spec.netns.take(),
            identity: spec.identity,
            supplementary_group: self.supplementary_group(),
        };
        Ok(Start {
            jail,
            output,
            console,
            control,
            slots,
            size: size(&spec),
            most: self.most(&spec),
            memory,
        })
    }

    /// How large a machine can become.
    fn most(&self, spec: &BootSpec) -> Size {
        let (own, grown) = (size(spec), self.capabilities.grown);
        match spec.template {
            true => Size {
                vcpus: own.vcpus.max(grown.vcpus),
                memory_mib: own.memory_mib.max(grown.memory_mib),
            },
            false => own,
        }
    }

    pub(super) fn plan(&self, spec: &BootSpec, sockets: Sockets, restored: bool) -> Plan {
        let most = self.most(spec);
        Plan {
            accelerator: self.accelerator,
            merge_memory: self.merge_memory,
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            hotplug_slots: spec.hotplug_slots,
            template: spec.template.then_some(Template { most, restored }),
            firmware: self.installation.firmware(),
            parameters: self.parameters(spec, self.counter_khz),
            sockets,
        }
    }

    /// The kernel's command line.
    pub(super) fn parameters(&self, spec: &BootSpec, counter_khz: Option<u64>) -> Vec<Parameter> {
        let most = self.most(spec).vcpus;
        let mut parameters = kernel_line::parameters(self.accelerator, most, counter_khz);
        parameters.extend(spec.parameters.iter().cloned());
        parameters
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

fn size(spec: &BootSpec) -> Size {
    Size {
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
    }
}
