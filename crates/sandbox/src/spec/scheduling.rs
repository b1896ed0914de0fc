//! `process.scheduler` and `process.ioPriority`.

use casemate_protocol::agent;
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Scheduler,
};

use super::Error;

const SCHEDULER: &str = "process.scheduler";

/// The rules are those of sched_setattr(2), which runc checks as well.
pub(super) fn scheduler(written: &Scheduler) -> Result<agent::Scheduler, Error> {
    use LinuxSchedulerPolicy::{SchedDeadline, SchedFifo, SchedRr};
    let policy = *written.policy();
    let nice = written.nice().unwrap_or(0);
    let priority = written.priority().unwrap_or(0);
    let deadline = [*written.runtime(), *written.deadline(), *written.period()];
    if !(-20..=19).contains(&nice) {
        return Err(Error::invalid(SCHEDULER, nice, "is no nice value"));
    }
    if priority != 0 && !matches!(policy, SchedFifo | SchedRr) {
        let problem = "is a priority, which only SCHED_FIFO and SCHED_RR have";
        return Err(Error::invalid(SCHEDULER, priority, problem));
    }
    if let Some(time) = deadline.into_iter().flatten().find(|time| *time != 0)
        && policy != SchedDeadline
    {
        let problem = "is a time, which only SCHED_DEADLINE has";
        return Err(Error::invalid(SCHEDULER, time, problem));
    }
    let flags = written.flags().iter().flatten();
    Ok(agent::Scheduler {
        policy: policy_number(policy),
        nice,
        priority,
        flags: flags.fold(0, |flags, flag| flags | flag_bit(*flag)),
        runtime_ns: deadline[0].unwrap_or(0),
        deadline_ns: deadline[1].unwrap_or(0),
        period_ns: deadline[2].unwrap_or(0),
        ..agent::Scheduler::default()
    })
}

/// linux/sched.h
fn policy_number(policy: LinuxSchedulerPolicy) -> u32 {
    match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    }
}

/// linux/sched.h
fn flag_bit(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

pub(super) fn io_priority(written: &LinuxIOPriority) -> Result<agent::IoPriority, Error> {
    const LOWEST: i64 = 7;
    let priority = match written.priority() {
        priority @ 0..=LOWEST => priority as u32,
        other => {
            let problem = "is not a priority from 0 to 7";
            return Err(Error::invalid("process.ioPriority", other, problem));
        }
    };
    // linux/ioprio.h
    let class = match written.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    Ok(agent::IoPriority {
        class,
        priority,
        ..agent::IoPriority::default()
    })
}
