//! Safe faces of the Linux system calls that the other crates need and that no
//! library offers in the form we want. The floor of the house: it knows
//! nothing of containers or virtual machines.
//!
//! Everything returns [`std::io::Error`]; callers add the object's name.

pub mod attributes;
pub mod bind;
pub mod bpf;
pub mod capability;
pub mod deadline;
pub mod descriptor;
pub mod disposition;
pub mod entropy;
pub mod foreign;
pub mod inheritance;
pub mod interface;
pub mod keyring;
pub mod ksm;
pub mod kvm_probe;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod priority;
pub mod process;
pub mod program;
pub mod reactor;
pub mod reaping;
pub mod seccomp;
pub mod socket;
pub mod tap;
pub mod terminal;
pub mod tsc;
pub mod view;
pub mod vsock;

use std::io;

/// Turns the -1 of a system call into `errno`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A path or name as the kernel takes it.
fn c_string(bytes: &[u8]) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(bytes).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a name must not contain a zero byte",
        )
    })
}
