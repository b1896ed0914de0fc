//! QEMU's command line for a machine: a pure function, so that golden files
//! show every change of it.

use std::{ffi::OsString, os::fd::RawFd, path::PathBuf};

use crate::{DeviceId, Parameter, device::Place};

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
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) hotplug_slots: u32,
    /// Whether file share and sockets have slots of their own, and processors and
    /// memory may come later.
    pub(super) template: bool,
    pub(super) firmware: Firmware,
    pub(super) parameters: Vec<Parameter>,
    pub(super) sockets: Sockets,
}

/// What the machine finds in its ROMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Firmware {
    /// Folders that it is looked for in.
    pub(super) folders: Vec<PathBuf>,
    /// Whether qboot is among it, which starts a kernel sooner than SeaBIOS.
    pub(super) has_qboot: bool,
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
    line.option("-machine", format!("q35,memory-backend=memory,{without}"));
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
    line.option("-smp", processors(plan.accelerator, plan.vcpus));
    let size = format!("{}M", plan.memory_mib);
    line.option("-m", &size);
    // Shared: the back ends of the vhost-user devices map it too.
    let memory = format!("memory-backend-memfd,id=memory,size={size},share=on");
    line.option("-object", memory);
}

/// A second processor that never comes: for a machine that can have one only, QEMU's translator
/// leaves out memory barriers and the atomicity of instructions (CF_PARALLEL in accel/tcg). Its
/// devices run in threads of their own all the same, and a driver that asks whether the device
/// wants to be told, before the device can see what there is to tell, waits for ever.
fn processors(accelerator: Accelerator, vcpus: u32) -> String {
    match (accelerator, vcpus) {
        (Accelerator::Emulation { .. }, 1) => "1,maxcpus=2".to_owned(),
        _ => vcpus.to_string(),
    }
}

fn boot(line: &mut Line, plan: &Plan) {
    for folder in &plan.firmware.folders {
        line.flag("-L");
        line.0.push(folder.into());
    }
    if plan.firmware.has_qboot {
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

fn shared_devices(line: &mut Line, plan: &Plan) {
    // Where they can be taken out they have to be called by a name.
    let place = |id: &DeviceId| match plan.template {
        true => format!(",id={id},bus={}", port_name(id)),
        false => String::new(),
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
    let own = [VSOCK_PORT, FILES_PORT].map(str::to_owned);
    let own = own.into_iter().filter(|_| plan.template);
    for (number, name) in (1..).zip(own.chain(slots)) {
        line.option(
            "-device",
            format!("pcie-root-port,id={name},chassis={number},slot={number}"),
        );
    }
}

/// What the kernel of every guest is told; the specification's own parameters
/// come later and win.
pub(super) fn parameters(
    accelerator: Accelerator,
    vcpus: u32,
    counter_khz: Option<u64>,
) -> Vec<Parameter> {
    // A panic is printed in spite of `quiet`, and ends the machine at once.
    // Devices are plugged through ACPI; what root ports could do themselves costs
    // some 10 ms of an emulated start for each, and 6 MiB of eight.
    let mut line =
        String::from("console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on pcie_ports=compat");
    if let Accelerator::Emulation { .. } = accelerator {
        line.push_str(EMULATED);
        // No room for those that never come.
        line.push_str(&format!(" nr_cpus={vcpus}"));
    }
    if let Some(khz) = counter_khz {
        // QEMU's translator passes the host's counter through, but a guest that
        // measures its rate on a busy host fails, or gets it wrong.
        line.push_str(&format!(" tsc=reliable tsc_early_khz={khz}"));
    }
    line.split_whitespace().map(Parameter::known).collect()
}

/// What an emulated machine is known to have, so that the kernel need not find
/// it out: timer interrupts that arrive, an APIC timer of 1 GHz (QEMU,
/// hw/intc/apic.c). To wipe the memory of its start, as much as it is, takes a
/// tenth of the start. Our own kernel knows the last two; others ignore them.
const EMULATED: &str = " no_timer_check lapic_timer_khz=1000000 keep_initmem";

/// The bus that a plugged device sits on.
pub(super) fn port_name(id: &DeviceId) -> String {
    match id.0 {
        Place::FileShare => FILES_PORT.to_owned(),
        Place::Vsock => VSOCK_PORT.to_owned(),
        Place::Slot { slot, .. } => format!("slot{slot}"),
    }
}

/// Where machines for templates have their file share.
const FILES_PORT: &str = "files-port";
/// Where they have their sockets.
const VSOCK_PORT: &str = "vsock-port";

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
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Compares with a golden file; with `CASEMATE_BLESS` set, writes it.
    fn golden(name: &str, plan: &Plan) {
        let arguments = arguments(plan);
        let words = arguments.iter().map(|word| word.to_str().unwrap());
        let mut text = String::new();
        for word in words {
            // One option a line, with its value.
            let option = word.starts_with('-');
            text.push_str(if text.is_empty() {
                ""
            } else if option {
                "\n"
            } else {
                " "
            });
            text.push_str(word);
        }
        text.push('\n');
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name);
        if std::env::var_os("CASEMATE_BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            text,
            expected,
            "{}: set CASEMATE_BLESS=1 to accept",
            path.display()
        );
    }

    fn plan(accelerator: Accelerator, prefix: &str) -> Plan {
        let mut parameters = parameters(accelerator, 1, Some(2_100_000));
        parameters.push(Parameter::known("casemate.example=1"));
        Plan {
            accelerator,
            vcpus: 1,
            memory_mib: 256,
            hotplug_slots: 0,
            template: false,
            firmware: Firmware {
                folders: vec![Path::new(prefix).join("share/qemu")],
                has_qboot: true,
            },
            parameters,
            sockets: Sockets {
                control: 3,
                console: 4,
                file_share: Some(("share,1".to_owned(), 5)),
                vsock: Some(6),
            },
        }
    }

    const EMULATION: Accelerator = Accelerator::Emulation {
        translation_buffer_mib: 32,
    };

    #[test]
    fn emulated_machine() {
        golden("emulated.txt", &plan(EMULATION, "/usr"));
    }

    #[test]
    fn a_translated_machine_could_always_have_two_processors() {
        assert_eq!(processors(EMULATION, 1), "1,maxcpus=2");
        assert_eq!(processors(EMULATION, 2), "2");
        assert_eq!(processors(Accelerator::Kvm, 1), "1");
    }

    #[test]
    fn machine_on_kvm() {
        let mut plan = plan(Accelerator::Kvm, "/usr");
        plan.vcpus = 4;
        plan.hotplug_slots = 2;
        plan.parameters = parameters(Accelerator::Kvm, 4, None);
        golden("kvm.txt", &plan);
    }

    #[test]
    fn machine_without_devices_in_a_program_elsewhere() {
        let mut plan = plan(EMULATION, "/opt/qemu");
        plan.firmware.folders.push("/opt/qemu/share/seabios".into());
        plan.firmware.has_qboot = false;
        plan.sockets.file_share = None;
        plan.sockets.vsock = None;
        golden("bare.txt", &plan);
    }
}
