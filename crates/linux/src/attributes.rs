//! Attributes that one process sets for another: limits, CPU scheduling, I/O
//! priority.

use std::io;

use crate::check;

/// IOPRIO_WHO_PROCESS of <linux/ioprio.h>.
const IOPRIO_WHO_PROCESS: i32 = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// CPU scheduling of a process (sched_setattr(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, nanoseconds.
    pub runtime: u64,
    /// For SCHED_DEADLINE, nanoseconds.
    pub deadline: u64,
    /// For SCHED_DEADLINE, nanoseconds.
    pub period: u64,
}

/// Sets a resource limit (RLIMIT_*) of a process (prlimit(2)).
///
/// # Errors
/// EPERM for a hard limit above the present one, EINVAL.
pub fn limit(pid: u32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the new limit is valid for reading, no old one is asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })?;
    Ok(())
}

/// Sets how a process is scheduled.
///
/// # Errors
/// EPERM, EINVAL for values that do not fit the policy.
pub fn schedule(pid: u32, scheduling: &Scheduling) -> io::Result<()> {
    // SAFETY: sched_attr is plain data; zero is a valid value of every field.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_policy = scheduling.policy;
    attributes.sched_flags = scheduling.flags;
    attributes.sched_nice = scheduling.nice;
    attributes.sched_priority = scheduling.priority;
    attributes.sched_runtime = scheduling.runtime;
    attributes.sched_deadline = scheduling.deadline;
    attributes.sched_period = scheduling.period;
    // SAFETY: attributes is valid for the size that it states.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) })?;
    Ok(())
}

/// Sets the I/O priority of a process (ioprio_set(2)).
///
/// # Errors
/// EINVAL, EPERM for the realtime class.
pub fn io_priority(pid: u32, class: u32, priority: u32) -> io::Result<()> {
    let value = class << IOPRIO_CLASS_SHIFT | priority;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, value) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Birth, Exit, spawn};

    #[test]
    fn another_process_is_limited_and_niced() {
        let (mut go, told) = io::pipe().unwrap();
        let child = spawn(Birth::default(), || {
            io::Read::read(&mut go, &mut [0]).unwrap();
            let (soft, _) =
                nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE).unwrap();
            let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
            let nice = stat.split(' ').nth(18).unwrap().to_owned();
            i32::from(soft == 4096 && nice == "5")
        })
        .unwrap();
        limit(child.pid(), libc::RLIMIT_CORE, 4096, 8192).unwrap();
        let scheduling = Scheduling {
            nice: 5,
            ..Scheduling::default()
        };
        schedule(child.pid(), &scheduling).unwrap();
        io_priority(child.pid(), 2, 7).unwrap();
        io::Write::write_all(&mut &told, b"x").unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(1));
    }
}
