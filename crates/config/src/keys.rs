//! The one definition of every key. The comment above a key is its entry in
//! the reference, so it is written for administrators.

use std::path::PathBuf;

use crate::allow::{AllowList, SAFE};
use crate::choice::{Accelerator, CachePolicy, Hypervisor, Ksm, LogLevel, Templates, Tier};
use crate::definition::{self, Given, KeyDefinition, PerPod, Refusal, TableDefinition, keys};
use crate::domain::{AbsolutePath, Domain, Line, OneOf};
use serde::{Deserialize, Serialize};

keys! {
    /// The virtual machine monitor of a sandbox.
    [vmm] Vmm {
        /// The program that runs a sandbox's virtual machine.
        hypervisor: Hypervisor = Hypervisor::Qemu, OneOf::<Hypervisor>::words();

        /// What executes the guest's instructions. `auto` takes KVM where it can
        /// really run a guest and emulation elsewhere; the other two allow only
        /// themselves.
        accelerator: Accelerator = Accelerator::Auto, OneOf::<Accelerator>::words(), Any;

        /// The weakest isolation tier in which a sandbox may run; a sandbox that
        /// would be weaker is refused. `kvm` is hardware virtualization on the
        /// machine itself, `nested` the same inside a virtual machine, `emulated`
        /// a machine emulated in software. A pod can only raise it.
        min_tier: Tier = Tier::Emulated, OneOf::<Tier>::words(), Any;

        /// Seconds from the start of the virtual machine until its agent must
        /// have answered; later the start has failed.
        boot_timeout_s: u32 = 60, 1..=3600, Any;

        /// How many virtual machines of this host may start at once for each
        /// processor that they may use. Later ones wait for their turn, in about
        /// the order in which they came, for at most 30 seconds; `0` lets all of
        /// them start at once. A turn ends when the sandbox's first container is
        /// made. With 1, a crowd of starts takes the least processor time; more
        /// is for hosts where starts wait for disks.
        starts_per_processor: u32 = 1, 0..=64;

        /// KiB of the guest's console output that are kept for each sandbox; older
        /// output makes room for newer.
        console_log_kib: u32 = 256, 4..=65536, Any;

        /// Whether the host's kernel may merge equal pages of sandboxes (KSM,
        /// Linux 6.4 or later; somebody has to write 1 to
        /// `/sys/kernel/mm/ksm/run`). What can be merged is what monitor, VMM and
        /// device process have for themselves: some 3 MiB of an emulated sandbox.
        /// The guest's memory cannot, as VMM and device process share it. `on`
        /// weakens the wall between sandboxes: a page that is merged takes longer
        /// to write, by which one sandbox can find out what another has in memory.
        /// `casemate memory` shows what has been merged.
        ksm: Ksm = Ksm::Off, OneOf::<Ksm>::words();
    }

    /// QEMU, where `vmm.hypervisor` is `qemu`.
    [qemu] Qemu {
        /// The QEMU system emulator for x86-64, version 7.2 or later.
        path: PathBuf = "/usr/bin/qemu-system-x86_64".into(), AbsolutePath;

        /// MiB that QEMU may use for translated code when it emulates the
        /// processor. A boot fills 42 of them and a clone of a template 26, and what
        /// is filled stays in memory. With less, QEMU throws all of it away on the
        /// way and translates anew: 16 cost a boot 0.15 s and a clone 0.08 s of
        /// processor time, 8 cost them 0.4 s and 0.3 s. More makes large workloads
        /// faster and each sandbox bigger; without effect under KVM.
        translation_buffer_mib: u32 = 64, 8..=2048, Any;
    }

    /// The machine that a sandbox gets unless its pod asks for another size.
    [machine] Machine {
        /// Virtual processors.
        vcpus: u32 = 1, 1..=255, Any;

        /// Memory in MiB. A pod that asks for more than this may get up to 127 more
        /// than it asks for: what is plugged into a clone comes in steps of 128.
        memory_mib: u32 = 256, 64..=1_048_576, Any;

        /// PCI Express root ports, each of which takes one device while the
        /// machine runs. Each costs some 20 ms of an emulated start.
        hotplug_slots: u32 = 4, 1..=24, Any;
    }

    /// Templates: the saved state of a machine that has booted, from which others
    /// begin where it was. See templates.md.
    [template] Template {
        /// Whether sandboxes begin as clones of a template. `auto` makes what is
        /// missing in the background, after a start that had to do without; `off`
        /// boots every machine.
        mode: Templates = Templates::Auto, OneOf::<Templates>::words(), Any;

        /// The folder of the templates, which is made for root alone. One on a
        /// tmpfs keeps them in the host's memory, one on a disk in its page cache
        /// as long as there is room. Either way they are made anew after the host
        /// has been started anew.
        directory: PathBuf = "/run/casemate/templates".into(), AbsolutePath;

        /// MiB that all templates may take. A template of the default size takes
        /// some 40; those that were used least recently make room.
        limit_mib: u32 = 512, 16..=1_048_576;
    }

    /// What runs inside the virtual machine.
    [guest] Guest {
        /// The guest kernel: an uncompressed x86-64 image that can be booted
        /// directly (PVH).
        kernel: PathBuf = "/usr/local/lib/casemate/vmlinux".into(), AbsolutePath, File;

        /// The initial RAM file system that holds the agent.
        initrd: PathBuf = "/usr/local/lib/casemate/initrd.cpio".into(), AbsolutePath, File;

        /// Words that are added at the end of the guest kernel's command line. Those
        /// of a pod come after those of the host.
        kernel_parameters: String = String::new(), Line(1024), Any;
    }

    /// Files that the host shares with a sandbox: root file systems and volumes.
    [share] Share {
        /// How long the guest may trust what it has cached of shared files.
        /// `auto` sees changes made on the host after about a second, `never` at
        /// once, `always` perhaps never.
        cache: CachePolicy = CachePolicy::Auto, OneOf::<CachePolicy>::words(), Any;
    }

    /// Requests to the agent in the guest.
    [agent] Agent {
        /// Seconds after which a request that the agent has not answered has
        /// failed. Waiting for a process to end is not limited.
        timeout_s: u32 = 30, 1..=3600, Any;
    }

    /// What a pod may ask for itself, by annotations such as
    /// `casemate.io/machine.vcpus: "2"`. Those of a sandbox's first container
    /// count: in Kubernetes, those of the pod.
    [pod] Pod {
        /// The keys of this configuration that annotations may set. `KEY` allows
        /// every value that the key accepts, `KEY=PATTERN` those that match, where
        /// `*` stands for any characters. Keys that name files of the host need a
        /// pattern, such as `guest.kernel=/opt/kernels/*`: whoever can make pods can
        /// have any of these files read. An annotation that is not allowed refuses
        /// the start.
        annotations: Vec<String> = SAFE.iter().copied().map(str::to_owned).collect(), AllowList;
    }

    /// The log of a sandbox's monitor: `monitor.log` in the sandbox's folder, or
    /// containerd's own log.
    [log] Log {
        /// The least important event that is logged. With `--debug` on the command
        /// line, or a containerd that logs everything, that is `debug`.
        level: LogLevel = LogLevel::Info, OneOf::<LogLevel>::words();
    }
}
