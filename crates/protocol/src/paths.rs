//! Where things are found in the guest: the part of the agent's file system
//! that the host needs to name.

/// Mount point of the virtio-fs share ([`crate::SHARE_TAG`]).
pub const SHARE: &str = "/run/casemate/share";

/// Root file system of a container, in the guest.
pub fn rootfs(container_id: &str) -> String {
    format!("{SHARE}/{}", rootfs_slot(container_id))
}

/// The n-th volume of a container, in the guest.
pub fn volume(container_id: &str, n: usize) -> String {
    format!("{SHARE}/{}", volume_slot(container_id, n))
}

/// The same place as [`rootfs`], relative to the share.
pub fn rootfs_slot(container_id: &str) -> String {
    format!("{container_id}/rootfs")
}

/// The same place as [`volume`], relative to the share.
pub fn volume_slot(container_id: &str, n: usize) -> String {
    format!("{container_id}/mounts/{n}")
}
