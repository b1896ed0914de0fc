//! Installing a compiled seccomp filter.

use std::io;

use crate::check;

/// Size of one `struct sock_filter`.
pub const INSTRUCTION: usize = size_of::<libc::sock_filter>();

/// Most instructions that the kernel takes (BPF_MAXINSNS).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Puts the calling process under a filter, given as the bytes of
/// `struct sock_filter[]`; there is no way back.
///
/// # Errors
/// EACCES without no_new_privs and CAP_SYS_ADMIN, EINVAL for a bad filter.
pub fn install(program: &[u8], flags: u32) -> io::Result<()> {
    if !program.len().is_multiple_of(INSTRUCTION) || program.len() / INSTRUCTION > MAX_INSTRUCTIONS
    {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut filter: Vec<_> = program
        .chunks_exact(INSTRUCTION)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let description = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the description points to a filter of the length it says.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const description,
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Birth, Exit, spawn};

    fn statement(code: u32, k: u32) -> Vec<u8> {
        let mut bytes = (code as u16).to_ne_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(k.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_filter_takes_effect() {
        // Kill on whatever comes next.
        let program = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS);
        let child = spawn(Birth::default(), || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            install(&program, 0).unwrap();
            nix::unistd::getpid();
            0
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Signal(libc::SIGSYS));
    }

    #[test]
    fn half_an_instruction_is_refused() {
        let error = install(&[0; 7], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
