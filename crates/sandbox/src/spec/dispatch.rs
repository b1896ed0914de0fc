//! The head of a seccomp program: which part of it decides about a call.
//!
//! Each architecture of a profile is compiled by itself, because libseccomp's
//! time grows with the square of what it compiles at once (podman's profile:
//! 25 to 40 ms for x86-64, x86 and x32 together, 9 ms one by one). The head
//! looks at a call's architecture and goes on in the part for it.
//!
//! The head also answers ENOSYS for system calls that are newer than the
//! profile. A profile that refuses what it does not list answers EPERM to a
//! call that did not exist when it was written. Programs try new calls and
//! fall back on ENOSYS only, so they would fail with such a profile whenever
//! the kernel is newer. As runc does, calls with a number above every number
//! that the profile mentions answer ENOSYS, before the profile itself is asked.

use libseccomp::{ScmpAction, ScmpArch, ScmpSyscall};
use oci_spec::runtime::LinuxSyscall;

/// The program for one architecture.
pub(super) struct Part {
    pub(super) architecture: ScmpArch,
    /// struct sock_filter[].
    pub(super) program: Vec<u8>,
    /// The number above which calls are newer than the profile.
    pub(super) newest: Option<u32>,
}

/// Size of a struct sock_filter.
pub(super) const INSTRUCTION: usize = 8;

/// The largest number of a system call that the rules name, unless the profile
/// lets unlisted calls pass or answers ENOSYS itself.
pub(super) fn newest_call(
    architecture: ScmpArch,
    default_action: ScmpAction,
    rules: &[LinuxSyscall],
) -> Option<u32> {
    let passes = [ScmpAction::Allow, ScmpAction::Log].contains(&default_action)
        || matches!(default_action, ScmpAction::Trace(_));
    if passes || default_action == ScmpAction::Errno(libc::ENOSYS) {
        return None;
    }
    let names = rules.iter().flat_map(LinuxSyscall::names);
    names
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, architecture).ok())
        // Negative numbers stand for calls that the architecture lacks.
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .max()
}

/// Puts the head before the parts. A call of an architecture without a part
/// kills its thread, which is libseccomp's answer as well.
pub(super) fn join(parts: &[Part]) -> Vec<u8> {
    let find = |architecture| parts.iter().find(|part| part.architecture == architecture);
    let newest = |architecture| find(architecture).and_then(|part| part.newest);
    let start = |architecture| {
        let index = parts
            .iter()
            .position(|part| part.architecture == architecture)?;
        let before: usize = parts[..index].iter().map(|part| part.program.len()).sum();
        Some((HEAD + before / INSTRUCTION) as u32)
    };
    let mut program = head(&newest, &start);
    for part in parts {
        program.extend_from_slice(&part.program);
    }
    program
}

/// Instructions of the head, and the two of them that are answers.
const HEAD: usize = 14;
const KILL: u8 = 12;
const TOO_NEW: u8 = 13;

/// Jumps count from the instruction after them. x32 calls are x86-64 calls
/// with a bit set (asm/unistd.h).
fn head(
    newest: &dyn Fn(ScmpArch) -> Option<u32>,
    start: &dyn Fn(ScmpArch) -> Option<u32>,
) -> Vec<u8> {
    // linux/bpf_common.h, linux/audit.h, linux/seccomp.h and seccomp(2).
    const LOAD: u16 = 0x20;
    const JUMP: u16 = 0x05;
    const EQUAL: u16 = 0x15;
    const GREATER: u16 = 0x25;
    const ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const AUDIT_ARCH_I386: u32 = 0x4000_0003;
    const X32_BIT: u32 = 0x4000_0000;
    const RET_KILL_THREAD: u32 = 0;
    const RET_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
    // No number is above this one.
    let newest = |architecture| newest(architecture).unwrap_or(u32::MAX);
    let to = |architecture, next: u32| start(architecture).unwrap_or(KILL.into()) - next;
    let instructions: [(u16, u8, u8, u32); HEAD] = [
        /* 0 */ (LOAD, 0, 0, ARCHITECTURE),
        /* 1 */ (EQUAL, 0, 8 - 2, AUDIT_ARCH_X86_64),
        /* 2 */ (LOAD, 0, 0, NUMBER),
        /* 3 */ (ANY_BIT, 6 - 4, 0, X32_BIT),
        /* 4 */ (GREATER, TOO_NEW - 5, 0, newest(ScmpArch::X8664)),
        /* 5 */ (JUMP, 0, 0, to(ScmpArch::X8664, 6)),
        /* 6 */ (GREATER, TOO_NEW - 7, 0, newest(ScmpArch::X32)),
        /* 7 */ (JUMP, 0, 0, to(ScmpArch::X32, 8)),
        /* 8 */ (EQUAL, 0, KILL - 9, AUDIT_ARCH_I386),
        /* 9 */ (LOAD, 0, 0, NUMBER),
        /* 10 */ (GREATER, TOO_NEW - 11, 0, newest(ScmpArch::X86)),
        /* 11 */ (JUMP, 0, 0, to(ScmpArch::X86, 12)),
        /* 12 */ (RETURN, 0, 0, RET_KILL_THREAD),
        /* 13 */ (RETURN, 0, 0, RET_ENOSYS),
    ];
    instructions.into_iter().flat_map(bytes).collect()
}

/// A struct sock_filter of x86-64.
fn bytes((code, on_true, on_false, operand): (u16, u8, u8, u32)) -> [u8; INSTRUCTION] {
    let [code_low, code_high] = code.to_le_bytes();
    let [a, b, c, d] = operand.to_le_bytes();
    [code_low, code_high, on_true, on_false, a, b, c, d]
}
