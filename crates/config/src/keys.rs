//! The one definition of every key. The comment above a key is its entry in
//! the reference, so it is written for administrators.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use crate::choice::{Accelerator, CachePolicy, Hypervisor, LogLevel, Tier};
use crate::definition::{self, KeyDefinition, Refusal, TableDefinition, keys};
use crate::domain::{AbsolutePath, Domain, Line, OneOf};

keys! {
    /// The virtual machine monitor of a sandbox.
    [vmm] Vmm {
        /// The program that runs a sandbox's virtual machine.
        hypervisor: Hypervisor = Hypervisor::Qemu, OneOf::<Hypervisor>::words();

        /// What executes the guest's instructions. `auto` takes KVM where it can
        /// really run a guest and emulation elsewhere; the other two allow only
        /// themselves.
        accelerator: Accelerator = Accelerator::Auto, OneOf::<Accelerator>::words();

        /// The weakest isolation tier in which a sandbox may run; a sandbox that
        /// would be weaker is refused. `kvm` is hardware virtualization on the
        /// machine itself, `nested` the same inside a virtual machine, `emulated`
        /// a machine emulated in software.
        min_tier: Tier = Tier::Emulated, OneOf::<Tier>::words();

        /// Seconds from the start of the virtual machine until its agent must
        /// have answered; later the start has failed.
        boot_timeout_s: u32 = 60, 1..=3600;

        /// KiB of the guest's console output that are kept for each sandbox; older
        /// output makes room for newer.
        console_log_kib: u32 = 256, 4..=65536;
    }

    /// QEMU, where `vmm.hypervisor` is `qemu`.
    [qemu] Qemu {
        /// The QEMU system emulator for x86-64, version 7.2 or later.
        path: PathBuf = "/usr/bin/qemu-system-x86_64".into(), AbsolutePath;

        /// MiB that QEMU may use for translated code when it emulates the
        /// processor. A start fills 42 of them; with less, QEMU throws all of it
        /// away on the way and a start takes 0.2 s more. More makes large
        /// workloads faster and each sandbox bigger; without effect under KVM.
        translation_buffer_mib: u32 = 64, 8..=2048;
    }

    /// The machine that a sandbox gets unless its pod asks for another size.
    [machine] Machine {
        /// Virtual processors.
        vcpus: u32 = 1, 1..=255;

        /// Memory in MiB.
        memory_mib: u32 = 256, 64..=1_048_576;

        /// PCI Express root ports, each of which takes one device while the
        /// machine runs. Each costs some 20 ms of an emulated start.
        hotplug_slots: u32 = 4, 1..=24;
    }

    /// What runs inside the virtual machine.
    [guest] Guest {
        /// The guest kernel: an uncompressed x86-64 image that can be booted
        /// directly (PVH).
        kernel: PathBuf = "/usr/local/lib/casemate/vmlinux".into(), AbsolutePath;

        /// The initial RAM file system that holds the agent.
        initrd: PathBuf = "/usr/local/lib/casemate/initrd.cpio".into(), AbsolutePath;

        /// Words that are added at the end of the guest kernel's command line.
        kernel_parameters: String = String::new(), Line(1024);
    }

    /// Files that the host shares with a sandbox: root file systems and volumes.
    [share] Share {
        /// How long the guest may trust what it has cached of shared files.
        /// `auto` sees changes made on the host after about a second, `never` at
        /// once, `always` perhaps never.
        cache: CachePolicy = CachePolicy::Auto, OneOf::<CachePolicy>::words();
    }

    /// Requests to the agent in the guest.
    [agent] Agent {
        /// Seconds after which a request that the agent has not answered has
        /// failed. Waiting for a process to end is not limited.
        timeout_s: u32 = 30, 1..=3600;
    }

    /// The log of Casemate's own processes.
    [log] Log {
        /// The least important event that is logged, unless the command line says
        /// otherwise.
        level: LogLevel = LogLevel::Info, OneOf::<LogLevel>::words();
    }
}
