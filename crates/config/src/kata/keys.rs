//! The table: every annotation that Kata Containers documents or reads.

use super::Meaning::{self, Nothing, Otherwise, Same};

/// The keys behind [`super::PREFIX`], those of one meaning together.
pub(super) const KEYS: &[(&[&str], Meaning)] = &[
    (
        &["config.hypervisor.default_vcpus"],
        Same {
            key: "machine.vcpus",
            remark: "Parts of a processor are rounded up. A CPU limit sizes the machine instead; it is not added.",
        },
    ),
    (
        &["config.hypervisor.default_memory"],
        Same {
            key: "machine.memory_mib",
            remark: "The memory limit comes on top of it, as in Kata.",
        },
    ),
    (
        &["config.hypervisor.kernel"],
        Same {
            key: "guest.kernel",
            remark: "An uncompressed kernel with all drivers built in: see guest.md.",
        },
    ),
    (
        &["config.hypervisor.initrd"],
        Same {
            key: "guest.initrd",
            remark: "One with Casemate's agent; Kata's holds Kata's.",
        },
    ),
    (
        &["config.hypervisor.kernel_params"],
        Same {
            key: "guest.kernel_parameters",
            remark: "Parameters that speak to Kata's agent (`agent.…`) or to systemd do nothing.",
        },
    ),
    (
        &["config.hypervisor.virtio_fs_cache"],
        Same {
            key: "share.cache",
            remark: "",
        },
    ),
    (
        &["config.runtime.create_container_timeout"],
        Same {
            key: "agent.timeout_s",
            remark: "It holds for every request to the agent.",
        },
    ),
    (
        &["config.hypervisor.pcie_root_port"],
        Otherwise(
            "`machine.hotplug_slots` counts the root ports, which network cards take as well",
        ),
    ),
    (
        &["config.hypervisor.default_max_vcpus"],
        Otherwise("the CPU limits of the pod size its machine"),
    ),
    (
        &[
            "config.hypervisor.memory_slots",
            "config.hypervisor.enable_virtio_mem",
        ],
        Otherwise(
            "the memory limits of the pod size its machine; memory that the guest never touches costs nothing",
        ),
    ),
    (
        &["config.runtime.disable_guest_seccomp"],
        Otherwise(
            "the seccomp profile of each container always holds in the guest; `seccompProfile: Unconfined` is for a container without",
        ),
    ),
    (
        &["config.runtime.sandbox_cgroup_only"],
        Nothing("all processes of a sandbox are always in its cgroup"),
    ),
    (
        &["config.runtime.internetworking_model"],
        Nothing("interfaces are always connected by TC redirect (`tcfilter`)"),
    ),
    (
        &["config.runtime.disable_new_netns"],
        Nothing("the hypervisor is always in an empty network namespace of its own"),
    ),
    (
        &[
            "config.runtime.name",
            "config.runtime.hypervisor_name",
            "config.runtime.agent_name",
        ],
        Nothing("there is one of each; the hypervisor is the host's choice (`vmm.hypervisor`)"),
    ),
    (
        &[
            "config.hypervisor.path",
            "config.hypervisor.ctlpath",
            "config.hypervisor.jailer_path",
            "config.hypervisor.virtio_fs_daemon",
        ],
        Nothing(
            "which programs run on the host is for the host's configuration alone (`qemu.path`)",
        ),
    ),
    (
        &[
            "config_path",
            "config.hypervisor.asset_hash_type",
            "config.hypervisor.path_hash",
            "config.hypervisor.hypervisor_hash",
            "config.hypervisor.hypervisorctl_hash",
            "config.hypervisor.jailer_hash",
            "config.hypervisor.kernel_hash",
            "config.hypervisor.initrd_hash",
            "config.hypervisor.image_hash",
            "config.hypervisor.firmware_hash",
            "config.hypervisor.firmware_volume_hash",
        ],
        Nothing("files of the host are named by the host's configuration, and trusted as it is"),
    ),
    (
        &[
            "config.hypervisor.image",
            "config.hypervisor.disable_image_nvdimm",
            "config.hypervisor.memory_offset",
            "config.hypervisor.firmware",
            "config.hypervisor.firmware_volume",
            "config.hypervisor.kernel_verity_params",
        ],
        Nothing("the guest starts from kernel and initrd, without an image or firmware"),
    ),
    (
        &[
            "config.hypervisor.shared_fs",
            "config.hypervisor.virtio_fs_cache_size",
            "config.hypervisor.virtio_fs_extra_args",
            "config.hypervisor.msize_9p",
        ],
        Nothing(
            "files are always shared by virtio-fs, served by Casemate's own device process without a DAX window",
        ),
    ),
    (
        &[
            "config.hypervisor.machine_type",
            "config.hypervisor.machine_accelerators",
            "config.hypervisor.cpu_features",
            "config.hypervisor.entropy_source",
            "config.hypervisor.enable_iommu",
            "config.hypervisor.enable_iommu_platform",
            "config.hypervisor.use_legacy_serial",
            "config.hypervisor.use_vsock",
            "config.hypervisor.pcie_switch_port",
        ],
        Nothing("the machine is of one kind: q35 with what its devices need and nothing else"),
    ),
    (
        &[
            "config.hypervisor.block_device_driver",
            "config.hypervisor.block_device_cache_set",
            "config.hypervisor.block_device_cache_direct",
            "config.hypervisor.block_device_cache_noflush",
            "config.hypervisor.block_device_num_queues",
            "config.hypervisor.block_device_queue_size",
            "config.hypervisor.blk_logical_sector_size",
            "config.hypervisor.blk_physical_sector_size",
            "config.hypervisor.disable_block_device_use",
            "config.hypervisor.enable_iothreads",
            "config.hypervisor.indep_iothreads",
            "config.hypervisor.enable_vhost_user_store",
            "config.hypervisor.vhost_user_store_path",
            "config.hypervisor.vhost_user_reconnect_timeout_sec",
        ],
        Nothing("how root file systems and volumes reach the guest is not for a pod to choose"),
    ),
    (
        &[
            "config.hypervisor.enable_mem_prealloc",
            "config.hypervisor.enable_hugepages",
            "config.hypervisor.hugepage_type",
            "config.hypervisor.file_mem_backend",
            "config.hypervisor.enable_swap",
            "config.hypervisor.enable_guest_swap",
        ],
        Nothing(
            "the guest's memory is ordinary shared memory of the host, taken as it is touched, and the guest has no swap",
        ),
    ),
    (
        &[
            "config.hypervisor.disable_vhost_net",
            "config.hypervisor.network_queues",
            "config.hypervisor.rx_rate_limiter_max_rate",
            "config.hypervisor.tx_rate_limiter_max_rate",
        ],
        Nothing(
            "the hypervisor carries the frames itself; the pod's interface on the host is where rates are limited (CNI bandwidth plugin)",
        ),
    ),
    (
        &[
            "config.hypervisor.hotplug_vfio_on_root_bus",
            "config.hypervisor.hot_plug_vfio",
            "config.hypervisor.cold_plug_vfio",
            "config.runtime.vfio_mode",
            "config.hypervisor.default_gpus",
            "config.hypervisor.default_gpu_model",
        ],
        Nothing("devices of the host are not passed to a machine"),
    ),
    (
        &[
            "config.hypervisor.guest_hook_path",
            "config.agent.kernel_modules",
        ],
        Nothing(
            "the guest has one kernel with everything built in and one program, the agent; `startContainer` hooks run in the container",
        ),
    ),
    (
        &["config.hypervisor.rootless"],
        Nothing("the hypervisor always runs unprivileged, under a user id of its own"),
    ),
    (
        &[
            "config.runtime.experimental",
            "config.runtime.enable_pprof",
            "config.runtime.enable_vcpus_pinning",
            "config.runtime.sandbox_bind_mounts",
            "config.runtime.shared_mounts",
            "config.runtime.experimental_force_guest_pull",
            "config.hypervisor.prefetch_files.list",
            "config.hypervisor.cc_init_data",
            "config.agent.enable_tracing",
            "config.agent.container_pipe_size",
            "config.agent.policy",
            "config.agent.cdh_api_timeout",
            "config.agent.cdh_api_timeout_ms",
        ],
        Nothing("Casemate has no such feature"),
    ),
    (
        &["pkg.oci.bundle_path", "pkg.oci.container_type"],
        Nothing("containerd and CRI-O say it in their own annotations"),
    ),
    (
        &[
            "container.resource.swappiness",
            "container.resource.swap_in_bytes",
        ],
        Nothing("the guest has no swap"),
    ),
];
