//! QEMU's command line for a machine: a pure function, so that golden files
//! show every change of it.

use std::{ffi::OsString, fmt, os::fd::RawFd, path::PathBuf};

use serde::Serialize;

use crate::{DeviceId, Parameter, Size, device::Place, jail::MEMORY, memory};

/// Where the jail shows the guest kernel.
pub(super) const KERNEL: &str = "/kernel";
/// Where the jail shows the initial RAM file system.
pub(super) const INITRD: &str = "/initrd";

/// A firmware that does nothing but start a kernel.
pub(super) const QBOOT: &str = "qboot.rom";

/// Entries of the queue on which file requests wait: what virtiofsd allows.
pub(super) const FILE_SHARE_QUEUE: u32 = 1024;

/// A machine, with everything resolved.
pub(super) struct Plan {
    pub(super) accelerator: Accelerator,
    /// Whether the host's kernel may merge equal pages of what only QEMU maps.
    pub(super) merge_memory: bool,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) hotplug_slots: u32,
    /// What it has besides if it is for templates.
    pub(super) template: Option<Template>,
    pub(super) firmware: Firmware,
    pub(super) parameters: Vec<Parameter>,
    pub(super) sockets: Sockets,
}

/// What a machine has so that it can be saved, restored and made larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Template {
    /// How large it can become.
    pub(super) most: Size,
    /// Whether it waits for its state instead of starting.
    pub(super) restored: bool,
}

/// What the machine finds in its ROMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Firmware {
    /// Folders that it is looked for in.
    pub(super) folders: Vec<PathBuf>,
    /// Whether qboot is among it, which starts a kernel sooner than SeaBIOS.
    pub(super) has_qboot: bool,
}

impl Firmware {
    /// The files that machines for templates start with.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let find = |name: &str| {
            let mut places = self.folders.iter().map(|folder| folder.join(name));
            places.find(|place| place.exists())
        };
        ["bios-256k.bin", "pvh.bin"]
            .into_iter()
            .filter_map(find)
            .collect()
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator, with this much memory for its code.
    Emulation { translation_buffer_mib: u32 },
}

/// Numbers under which QEMU inherits its sockets.
pub(super) struct Sockets {
    pub(super) control: RawFd,
    pub(super) console: RawFd,
    /// With the tag by which the guest mounts it.
    pub(super) file_share: Option<(String, RawFd)>,
    pub(super) vsock: Option<RawFd>,
}

/// QEMU's arguments, its own name first.
pub(super) fn arguments(plan: &Plan) -> Vec<OsString> {
    let mut line = Line(vec!["qemu-system-x86_64".into()]);
    nothing_by_default(&mut line);
    machine(&mut line, plan);
    boot(&mut line, plan);
    control(&mut line, plan.sockets.control);
    console(&mut line, plan.sockets.console);
    entropy(&mut line, plan.accelerator);
    generation(&mut line, plan);
    hotplug_slots(&mut line, plan);
    shared_devices(&mut line, plan);
    line.0
}

fn nothing_by_default(line: &mut Line) {
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-display", "none");
    // A guest that restarts itself has ended.
    line.flag("-no-reboot");
    // Threads are told apart by their names.
    line.option("-name", "sandbox,debug-threads=on");
    let denied = "obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    line.option("-sandbox", format!("on,{denied}"));
}

fn machine(line: &mut Line, plan: &Plan) {
    // Legacy devices that no container needs only cost time at boot.
    let without = "graphics=off,hpet=off,i8042=off,sata=off,smbus=off,smm=off,usb=off,vmport=off";
    let merge = if plan.merge_memory { "on" } else { "off" };
    line.option(
        "-machine",
        format!("q35,memory-backend=memory,mem-merge={merge},{without}"),
    );
    match plan.accelerator {
        Accelerator::Kvm => {
            line.option("-accel", "kvm");
            line.option("-cpu", "host");
        }
        Accelerator::Emulation {
            translation_buffer_mib: buffer,
        } => {
            line.option("-accel", format!("tcg,tb-size={buffer}"));
            // Without fast string instructions: the kernel copies with them where
            // they are there, and they are the slow ones when emulated.
            line.option("-cpu", "max,-erms,-fsrm");
        }
    }
    line.option("-smp", processors(plan));
    line.option("-m", memory_size(plan));
    // Shared: the back ends of the vhost-user devices map it too. Only memory that
    // has a name is left out of what is saved.
    let kind = match plan.template {
        Some(_) => format!("file,mem-path={MEMORY}/{}", memory::NAME),
        None => "memfd".to_owned(),
    };
    let size = plan.memory_mib;
    let memory = format!("memory-backend-{kind},id=memory,size={size}M,share=on");
    line.option("-object", memory);
}

/// Parts in which memory can be added later: a table of the firmware each.
const MEMORY_SLOTS: u32 = 8;

fn memory_size(plan: &Plan) -> String {
    let size = plan.memory_mib;
    match plan.template.map(|template| template.most.memory_mib) {
        Some(most) if most > size => format!("{size}M,slots={MEMORY_SLOTS},maxmem={most}M"),
        _ => format!("{size}M"),
    }
}

/// A second processor that never comes: for a machine that can have one only, QEMU's translator
/// leaves out memory barriers and the atomicity of instructions (CF_PARALLEL in accel/tcg). Its
/// devices run in threads of their own all the same, and a driver that asks whether the device
/// wants to be told, before the device can see what there is to tell, waits for ever.
fn processors(plan: &Plan) -> String {
    let now = plan.vcpus;
    let most = plan.template.map_or(now, |template| template.most.vcpus);
    let most = match plan.accelerator {
        Accelerator::Emulation { .. } => most.max(2),
        Accelerator::Kvm => most,
    };
    match most > now {
        true => format!("{now},maxcpus={most}"),
        false => now.to_string(),
    }
}

fn boot(line: &mut Line, plan: &Plan) {
    for folder in &plan.firmware.folders {
        line.flag("-L");
        line.0.push(folder.into());
    }
    // It does not know what the device of the machine's generation asks of it.
    if plan.firmware.has_qboot && plan.template.is_none() {
        line.option("-bios", QBOOT);
    }
    line.option("-kernel", KERNEL);
    line.option("-initrd", INITRD);
    let words: Vec<String> = plan.parameters.iter().map(Parameter::to_string).collect();
    line.option("-append", words.join(" "));
}

fn control(line: &mut Line, fd: RawFd) {
    line.option("-chardev", format!("socket,id=control,fd={fd}"));
    line.option("-mon", "chardev=control,mode=control");
}

fn console(line: &mut Line, fd: RawFd) {
    line.option("-chardev", format!("socket,id=console,fd={fd}"));
    line.option("-serial", "chardev:console");
}

/// An emulated processor's RDRAND is the host's own generator (QEMU,
/// target/i386/tcg/int_helper.c): there a device would only cost time.
fn entropy(line: &mut Line, accelerator: Accelerator) {
    if accelerator == Accelerator::Kvm {
        line.option("-object", "rng-builtin,id=entropy");
        line.option("-device", "virtio-rng-pci-non-transitional,rng=entropy");
    }
}

/// A number that is another in every restored machine, by which the guest's kernel
/// knows that its random numbers are not its own any more.
fn generation(line: &mut Line, plan: &Plan) {
    if let Some(template) = plan.template {
        line.option("-device", "vmgenid,guid=auto");
        if template.restored {
            // It goes on when all is plugged that it needs.
            line.flag("-S");
            line.option("-incoming", "defer");
        }
    }
}

fn shared_devices(line: &mut Line, plan: &Plan) {
    // Where they can be taken out they have to be called by a name.
    let place = |id: &DeviceId| match plan.template {
        Some(_) => format!(",id={id}{}", Seat::of(id)),
        None => String::new(),
    };
    if let Some((tag, fd)) = &plan.sockets.file_share {
        let (tag, place) = (escaped(tag), place(&DeviceId::FILE_SHARE));
        line.option("-chardev", format!("socket,id=files,fd={fd}"));
        line.option(
            "-device",
            format!(
                "vhost-user-fs-pci,chardev=files,tag={tag},queue-size={FILE_SHARE_QUEUE}{place}"
            ),
        );
    }
    if let Some(fd) = plan.sockets.vsock {
        let place = place(&DeviceId::VSOCK);
        line.option("-chardev", format!("socket,id=vsock,fd={fd}"));
        line.option(
            "-device",
            format!("vhost-user-vsock-pci-non-transitional,chardev=vsock{place}"),
        );
    }
}

fn hotplug_slots(line: &mut Line, plan: &Plan) {
    let slots = (0..plan.hotplug_slots).map(|slot| format!("slot{slot}"));
    let own = plan.template.map(|_| OWN_PORT.to_owned());
    for (number, name) in (1..).zip(own.into_iter().chain(slots)) {
        line.option(
            "-device",
            format!("pcie-root-port,id={name},chassis={number},slot={number}"),
        );
    }
}

/// Where a plugged device sits.
#[derive(Debug, Serialize)]
pub(super) struct Seat {
    bus: String,
    /// Of devices that share a slot.
    #[serde(flatten)]
    function: Option<Function>,
}

#[derive(Debug, Serialize)]
struct Function {
    addr: &'static str,
    multifunction: bool,
}

impl Seat {
    pub(super) fn of(id: &DeviceId) -> Self {
        let own = |addr| Self {
            bus: OWN_PORT.to_owned(),
            function: Some(Function {
                addr,
                multifunction: true,
            }),
        };
        match id.0 {
            // The guest is told of a slot when its first function comes.
            Place::Vsock => own("0.0"),
            Place::FileShare => own("0.1"),
            Place::Slot { slot, .. } => Self {
                bus: format!("slot{slot}"),
                function: None,
            },
        }
    }
}

/// What follows in the list of an option.
impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ",bus={}", self.bus)?;
        match &self.function {
            Some(function) => write!(f, ",addr={},multifunction=on", function.addr),
            None => Ok(()),
        }
    }
}

/// Where machines for templates have file share and sockets.
const OWN_PORT: &str = "own";

/// A value inside an option's list: commas are doubled.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, flag: &str, value: impl AsRef<str>) {
        self.flag(flag);
        self.0.push(value.as_ref().into());
    }
}

#[cfg(test)]
mod tests;
