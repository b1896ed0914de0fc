//! Programs of cgroup v2: bpf(2) with BPF_PROG_TYPE_CGROUP_DEVICE, which decides
//! about devices, and BPF_PROG_TYPE_CGROUP_SOCK_ADDR, which changes the
//! addresses that sockets speak to. Programs of network namespaces:
//! BPF_PROG_TYPE_SK_LOOKUP, which chooses who accepts a connection.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::check;

const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const LINK_CREATE: i32 = 28;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const ATTACH_TYPE_SK_LOOKUP: u32 = 36;
const MAP_TYPE_SOCKMAP: u32 = 15;
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
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Members of `union bpf_attr` as BPF_LINK_CREATE reads them.
#[repr(C)]
struct Link {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Members of `union bpf_attr` as BPF_MAP_CREATE reads them.
#[repr(C)]
struct Map {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// Members of `union bpf_attr` as BPF_MAP_UPDATE_ELEM reads them.
#[repr(C)]
struct Element {
    map_fd: u32,
    unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Where an address program is asked (`enum bpf_attach_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum AddressHook {
    /// connect(2) of an IPv4 socket.
    Connect4 = 10,
    /// sendto(2) and the like of an IPv4 UDP socket that is not connected.
    SendMessage4 = 14,
    /// recvfrom(2) and the like of an IPv4 UDP socket: the sender's address.
    ReceiveMessage4 = 19,
    /// getpeername(2) of an IPv4 socket.
    PeerName4 = 29,
}

/// `struct bpf_insn` as one number: opcode, destination and source register,
/// offset, immediate value.
pub const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> u64 {
    code as u64
        | ((to | from << 4) as u64) << 8
        | (offset as u16 as u64) << 16
        | (immediate as u64) << 32
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
    load(
        PROG_TYPE_CGROUP_DEVICE,
        ATTACH_TYPE_CGROUP_DEVICE,
        instructions,
    )
}

/// Has the kernel check an address program and asks it for a cgroup and all
/// below it, until the returned link is closed.
///
/// # Errors
/// As for a device program; EBADF when `cgroup` is not a directory of cgroup v2.
pub fn link_address_program(
    hook: AddressHook,
    instructions: &[u64],
    cgroup: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let hook = hook as u32;
    let program = load(PROG_TYPE_CGROUP_SOCK_ADDR, hook, instructions)?;
    link(&program, cgroup, hook)
}

/// Has the kernel check a lookup program and asks it for each connection that
/// comes in a network namespace, until the returned link is closed.
///
/// # Errors
/// As for a device program; EINVAL when `namespace` is none.
pub fn link_lookup_program(instructions: &[u64], namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let program = load(PROG_TYPE_SK_LOOKUP, ATTACH_TYPE_SK_LOOKUP, instructions)?;
    link(&program, namespace, ATTACH_TYPE_SK_LOOKUP)
}

/// A map (BPF_MAP_TYPE_SOCKMAP) that has this socket at key 0, for programs that
/// choose it.
///
/// # Errors
/// EOPNOTSUPP for a socket that can not be chosen, EPERM.
pub fn map_of_socket(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = Map {
        map_type: MAP_TYPE_SOCKMAP,
        key_size: size_of::<u32>() as u32,
        value_size: size_of::<u64>() as u32,
        max_entries: 1,
    };
    // SAFETY: attributes is valid for its size.
    let map = unsafe { make(MAP_CREATE, &attributes) }?;
    let (key, value) = (0_u32, socket.as_raw_fd() as u64);
    let attributes = Element {
        map_fd: map.as_raw_fd() as u32,
        unused: 0,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: attributes is valid for its size; key and value, which have the
    // sizes that the map was made with, outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_UPDATE_ELEM,
            &raw const attributes,
            size_of::<Element>(),
        )
    })?;
    Ok(map)
}

fn link(program: &OwnedFd, target: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let attributes = Link {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: target.as_raw_fd() as u32,
        attach_type,
        flags: 0,
    };
    // SAFETY: attributes is valid for its size.
    unsafe { make(LINK_CREATE, &attributes) }
}

fn load(prog_type: u32, attach_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let attributes = Load {
        prog_type,
        insn_count: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type: attach_type,
    };
    // SAFETY: attributes is valid for its size; the instructions and the
    // licence that it points to outlive the call.
    unsafe { make(PROG_LOAD, &attributes) }
}

/// A bpf(2) command that makes something.
///
/// # Safety
/// `attributes` must be what the command reads, and all that it points to valid.
unsafe fn make<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    let attributes: *const T = attributes;
    // SAFETY: as the caller promises; the pointer is to a T of that size.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes a device program decide for a cgroup and all below it; it goes with
/// the cgroup.
///
/// # Errors
/// EBADF when `cgroup` is not a directory of cgroup v2, EPERM.
pub fn attach_device_program(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    change_device_program(PROG_ATTACH, F_ALLOW_MULTI, program, cgroup)
}

/// A device program decides for a cgroup no more.
///
/// # Errors
/// ENOENT when it did not, EPERM.
pub fn detach_device_program(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    change_device_program(PROG_DETACH, 0, program, cgroup)
}

fn change_device_program(
    command: i32,
    attach_flags: u32,
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> io::Result<()> {
    let attributes = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags,
    };
    // SAFETY: attributes is valid for its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const attributes,
            size_of::<Attach>(),
        )
    })?;
    Ok(())
}
