//! `linux.seccomp`: the profile compiled to a BPF program, so that the guest
//! needs no libseccomp and only installs bytes.
//!
//! The meaning is runc's, corner by corner: system calls that libseccomp does
//! not know are left out, a rule with the default action says nothing, several
//! conditions on one argument are alternatives, and system calls newer than
//! the profile answer ENOSYS (see [`super::dispatch`]).

use std::fs::File;
use std::io::{Read as _, Seek as _};

use casemate_protocol::agent;
use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::Error;
use super::dispatch::{self, INSTRUCTION, Part, newest_call};

const FIELD: &str = "linux.seccomp";

/// Above this many system calls libseccomp sorts them into a tree. (Its
/// releases up to 2.5.4 fail to build an empty one.)
const MANY_SYSTEM_CALLS: usize = 32;

/// The most instructions that the kernel takes (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// Compiles a profile for the guest.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<agent::Seccomp, Error> {
    let flags = check(profile)?;
    let parts = architectures(profile)
        .into_iter()
        .map(|architecture| part(architecture, profile));
    let program = dispatch::join(&parts.collect::<Result<Vec<_>, _>>()?);
    if program.len() / INSTRUCTION > MAX_INSTRUCTIONS {
        return Err(Error::Seccomp {
            reason: format!("the program is longer than {MAX_INSTRUCTIONS} instructions"),
        });
    }
    Ok(agent::Seccomp {
        program,
        flags,
        ..agent::Seccomp::default()
    })
}

/// Refuses what can be seen without compiling. The flags are
/// SECCOMP_FILTER_FLAG_*.
pub(super) fn check(profile: &LinuxSeccomp) -> Result<u32, Error> {
    check_listener(profile)?;
    action(profile.default_action(), profile.default_errno_ret())?;
    for rule in profile.syscalls().iter().flatten() {
        action(rule.action(), rule.errno_ret())?;
        alternatives(rule.args().as_deref().unwrap_or_default())?;
        if rule.names().iter().any(String::is_empty) {
            return Err(Error::invalid(FIELD, "", "is no name of a system call"));
        }
    }
    flags(profile)
}

fn part(architecture: ScmpArch, profile: &LinuxSeccomp) -> Result<Part, Error> {
    let default_action = action(profile.default_action(), profile.default_errno_ret())?;
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let mut filter = ScmpFilterContext::new(default_action).map_err(refused)?;
    if architecture != ScmpArch::X8664 {
        filter.add_arch(architecture).map_err(refused)?;
        filter.remove_arch(ScmpArch::X8664).map_err(refused)?;
    }
    if rules.iter().map(|rule| rule.names().len()).sum::<usize>() > MANY_SYSTEM_CALLS {
        filter.set_ctl_optimize(2).map_err(refused)?;
    }
    for rule in rules {
        add_rule(&mut filter, rule, default_action)?;
    }
    Ok(Part {
        architecture,
        program: export(&filter)?,
        newest: newest_call(architecture, default_action, rules),
    })
}

fn refused(error: SeccompError) -> Error {
    Error::Seccomp {
        reason: error.to_string(),
    }
}

/// A listener would be a process of the host that answers for the guest's
/// kernel, which has no way to ask it.
fn check_listener(profile: &LinuxSeccomp) -> Result<(), Error> {
    let rules = profile.syscalls().iter().flatten();
    let mut actions = rules
        .map(LinuxSyscall::action)
        .chain([profile.default_action()]);
    let notifies = actions.any(|action| action == LinuxSeccompAction::ScmpActNotify);
    if notifies || profile.listener_path().is_some() {
        let reason = "a listener on the host cannot decide for the kernel of a virtual machine";
        return Err(Error::unsupported(FIELD, reason));
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, Error> {
    use LinuxSeccompAction as Oci;
    // linux/err.h
    const MAX_ERRNO: u32 = 4095;
    let answers_errno = matches!(action, Oci::ScmpActErrno | Oci::ScmpActTrace);
    if let Some(errno) = errno.filter(|_| !answers_errno) {
        // Runtime spec, "Seccomp": the runtime must fail then.
        return Err(Error::invalid(
            FIELD,
            errno,
            "is an errnoRet for an action without one",
        ));
    }
    let number = errno.unwrap_or(libc::EPERM as u32);
    if number > MAX_ERRNO {
        return Err(Error::invalid(FIELD, number, "is no error number"));
    }
    Ok(match action {
        Oci::ScmpActKill | Oci::ScmpActKillThread => ScmpAction::KillThread,
        Oci::ScmpActKillProcess => ScmpAction::KillProcess,
        Oci::ScmpActTrap => ScmpAction::Trap,
        Oci::ScmpActErrno => ScmpAction::Errno(number as i32),
        Oci::ScmpActTrace => ScmpAction::Trace(number as u16),
        Oci::ScmpActLog => ScmpAction::Log,
        Oci::ScmpActAllow => ScmpAction::Allow,
        Oci::ScmpActNotify => ScmpAction::Notify,
    })
}

/// The listed architectures and the guest's, which libseccomp always has.
fn architectures(profile: &LinuxSeccomp) -> Vec<ScmpArch> {
    let mut architectures = vec![ScmpArch::X8664];
    for listed in profile.architectures().iter().flatten() {
        let architecture = match listed {
            Arch::ScmpArchNative | Arch::ScmpArchX86_64 => continue,
            Arch::ScmpArchX86 => ScmpArch::X86,
            Arch::ScmpArchX32 => ScmpArch::X32,
            // No process of an x86-64 guest makes calls of any other.
            _ => continue,
        };
        if !architectures.contains(&architecture) {
            architectures.push(architecture);
        }
    }
    architectures
}

/// SECCOMP_FILTER_FLAG_* of linux/seccomp.h.
fn flags(profile: &LinuxSeccomp) -> Result<u32, Error> {
    const LOG: u32 = 1 << 1;
    const SPEC_ALLOW: u32 = 1 << 2;
    let Some(listed) = profile.flags() else {
        // As runc has it when none are listed, not even an empty list.
        return Ok(SPEC_ALLOW);
    };
    let mut flags = 0;
    for flag in listed {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
            // The process that installs the filter has one thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                let reason = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is for listeners only";
                return Err(Error::unsupported(FIELD, reason));
            }
        };
    }
    Ok(flags)
}

fn add_rule(
    filter: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default_action: ScmpAction,
) -> Result<(), Error> {
    let action = action(rule.action(), rule.errno_ret())?;
    if action == default_action {
        return Ok(());
    }
    let alternatives = alternatives(rule.args().as_deref().unwrap_or_default())?;
    for name in rule.names() {
        let Ok(system_call) = ScmpSyscall::from_name(name) else {
            continue;
        };
        for conditions in &alternatives {
            filter
                .add_rule_conditional(action, system_call, conditions)
                .map_err(|error| Error::Seccomp {
                    reason: format!("{name}: {error}"),
                })?;
        }
    }
    Ok(())
}

/// Sets of conditions, each of which is enough. Conditions on different
/// arguments must all hold; if any argument has several, each condition of the
/// rule stands alone.
fn alternatives(args: &[LinuxSeccompArg]) -> Result<Vec<Vec<ScmpArgCompare>>, Error> {
    /// A system call of Linux has at most this many.
    const ARGUMENTS: usize = 6;
    let mut conditions = Vec::new();
    for arg in args {
        if arg.index() >= ARGUMENTS {
            return Err(Error::invalid(
                FIELD,
                arg.index(),
                "is no index of an argument",
            ));
        }
        conditions.push(condition(arg));
    }
    let repeated = (0..args.len()).any(|n| {
        let mut before = args[..n].iter();
        before.any(|other| other.index() == args[n].index())
    });
    Ok(if repeated {
        conditions
            .into_iter()
            .map(|condition| vec![condition])
            .collect()
    } else {
        vec![conditions]
    })
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    use LinuxSeccompOperator as Oci;
    let (operator, datum) = match arg.op() {
        Oci::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Oci::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Oci::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Oci::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Oci::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Oci::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // "value" is the mask, "valueTwo" what must be left of the argument.
        Oci::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    ScmpArgCompare::new(arg.index() as u32, operator, datum)
}

/// libseccomp writes the program to a file descriptor only (until 2.6).
fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, Error> {
    let failed = |error: std::io::Error| Error::Seccomp {
        reason: format!("memory file: {error}"),
    };
    let memory = memfd_create(c"seccomp", MFdFlags::MFD_CLOEXEC);
    let mut memory = File::from(memory.map_err(|error| failed(error.into()))?);
    filter.export_bpf(&memory).map_err(refused)?;
    memory.rewind().map_err(failed)?;
    let mut program = Vec::new();
    memory.read_to_end(&mut program).map_err(failed)?;
    Ok(program)
}
