//! Device programs of cgroup v2: bpf(2) with BPF_PROG_TYPE_CGROUP_DEVICE.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::check;

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// Programs of ancestors and of later updates stay in force beside this one.
const F_ALLOW_MULTI: u32 = 1 << 1;

/// First members of `union bpf_attr` as BPF_PROG_LOAD reads them; the kernel
/// takes what is beyond the given size as zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
}

/// Members of `union bpf_attr` as BPF_PROG_ATTACH reads them.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Has the kernel check a device program, given as `struct bpf_insn` values.
///
/// # Errors
/// EINVAL or EACCES when the kernel finds fault with it, EPERM.
pub fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    let attributes = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_count: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
    };
    // SAFETY: attributes is valid for its size; the instructions and the
    // licence that it points to outlive the call.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw const attributes,
            size_of::<Load>(),
        )
    })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes a device program decide for a cgroup and all below it; it goes with
/// the cgroup.
///
/// # Errors
/// EBADF when `cgroup` is not a directory of cgroup v2, EPERM.
pub fn attach_device_program(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI,
    };
    // SAFETY: attributes is valid for its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attributes,
            size_of::<Attach>(),
        )
    })?;
    Ok(())
}
