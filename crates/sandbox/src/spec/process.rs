//! `process`: what the guest needs to start a container's init or one more
//! process in it.

use casemate_protocol::agent::{self, Rlimit, Seccomp};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};

use super::{Error, capabilities, scheduling};

/// The init process of a container. `seccomp` is the container's filter, from
/// [`super::seccomp::compile`].
pub(super) fn init_process(
    process: &Process,
    seccomp: Option<Seccomp>,
    warnings: &mut Vec<String>,
) -> Result<agent::Process, Error> {
    warn_of_labels(process, warnings);
    let user = process.user();
    let (columns, rows) = terminal_size(process)?;
    Ok(agent::Process {
        args: arguments(process)?,
        env: environment(process)?,
        cwd: working_directory(process)?,
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        capabilities: process
            .capabilities()
            .as_ref()
            .map(|sets| capabilities::masks(sets, warnings))
            .into(),
        rlimits: rlimits(process)?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: oom_score_adj(process)?,
        terminal: process.terminal().unwrap_or(false),
        columns,
        rows,
        seccomp: seccomp.into(),
        scheduler: process
            .scheduler()
            .as_ref()
            .map(scheduling::scheduler)
            .transpose()?
            .into(),
        io_priority: process
            .io_priority()
            .as_ref()
            .map(scheduling::io_priority)
            .transpose()?
            .into(),
        ..agent::Process::default()
    })
}

/// One more process of the container whose init is `init`. As with runc, it
/// gets the container's seccomp filter, and the container's capabilities,
/// limits and OOM score where it brings none of its own.
/// With it come warnings, as in [`super::HostSpec::warnings`].
pub fn exec_process(
    process: &Process,
    init: &agent::Process,
) -> Result<(agent::Process, Vec<String>), Error> {
    let mut warnings = Vec::new();
    let seccomp = init.seccomp.clone().into_option();
    let mut added = init_process(process, seccomp, &mut warnings)?;
    if added.capabilities.is_none() {
        added.capabilities = init.capabilities.clone();
    }
    if added.rlimits.is_empty() {
        added.rlimits.clone_from(&init.rlimits);
    }
    added.oom_score_adj = added.oom_score_adj.or(init.oom_score_adj);
    added.umask = added.umask.or(init.umask);
    if process.no_new_privileges().is_none() {
        added.no_new_privileges = init.no_new_privileges;
    }
    Ok((added, warnings))
}

fn arguments(process: &Process) -> Result<Vec<String>, Error> {
    let args = process.args().clone().unwrap_or_default();
    match args.first() {
        None => Err(Error::missing("process.args")),
        Some(program) if program.is_empty() => Err(Error::invalid(
            "process.args[0]",
            program,
            "is not a program",
        )),
        Some(_) => no_zero_byte("process.args", args),
    }
}

fn environment(process: &Process) -> Result<Vec<String>, Error> {
    let env = process.env().clone().unwrap_or_default();
    for variable in &env {
        if variable
            .find('=')
            .is_none_or(|end_of_name| end_of_name == 0)
        {
            return Err(Error::invalid("process.env", variable, "is not NAME=value"));
        }
    }
    no_zero_byte("process.env", env)
}

fn working_directory(process: &Process) -> Result<String, Error> {
    let cwd = process.cwd().to_string_lossy().into_owned();
    if !cwd.starts_with('/') {
        return Err(Error::invalid("process.cwd", cwd, "is not absolute"));
    }
    if cwd.contains('\0') {
        return Err(Error::invalid("process.cwd", cwd, "has a zero byte"));
    }
    Ok(cwd)
}

fn no_zero_byte(field: &str, strings: Vec<String>) -> Result<Vec<String>, Error> {
    match strings.iter().find(|string| string.contains('\0')) {
        Some(string) => Err(Error::invalid(field, string, "has a zero byte")),
        None => Ok(strings),
    }
}

/// The guest has neither AppArmor nor SELinux: the virtual machine stands
/// where these would. Clients send labels for every container of a host that
/// has them, so they are no reason to refuse one.
fn warn_of_labels(process: &Process, warnings: &mut Vec<String>) {
    let labels = [
        (
            "process.apparmorProfile",
            process.apparmor_profile(),
            "AppArmor",
        ),
        ("process.selinuxLabel", process.selinux_label(), "SELinux"),
    ];
    for (field, label, system) in labels {
        if let Some(label) = label.as_deref().filter(|label| !label.is_empty()) {
            warnings.push(format!(
                "{field}: {label:?} has no effect: the guest has no {system}"
            ));
        }
    }
    if process.exec_cpu_affinity().is_some() {
        let reason = "has no effect: the guest's processors are not the host's";
        warnings.push(format!("process.execCPUAffinity {reason}"));
    }
}

fn terminal_size(process: &Process) -> Result<(u32, u32), Error> {
    let Some(size) = process.console_size() else {
        return Ok((0, 0));
    };
    // struct winsize has 16 bits for each.
    match (u16::try_from(size.width()), u16::try_from(size.height())) {
        (Ok(columns), Ok(rows)) => Ok((columns.into(), rows.into())),
        _ => {
            let written = format!("{}x{}", size.width(), size.height());
            Err(Error::invalid(
                "process.consoleSize",
                written,
                "is too large for a terminal",
            ))
        }
    }
}

fn oom_score_adj(process: &Process) -> Result<Option<i32>, Error> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => Err(Error::invalid(
            "process.oomScoreAdj",
            score,
            "is not within -1000 and 1000",
        )),
        score => Ok(score),
    }
}

fn rlimits(process: &Process) -> Result<Vec<Rlimit>, Error> {
    const FIELD: &str = "process.rlimits";
    let mut rlimits: Vec<Rlimit> = Vec::new();
    for written in process.rlimits().iter().flatten() {
        let rlimit = rlimit(written);
        if rlimit.soft > rlimit.hard {
            let problem = "has a soft limit above its hard limit";
            return Err(Error::invalid(FIELD, written.typ(), problem));
        }
        if rlimits
            .iter()
            .any(|other| other.resource == rlimit.resource)
        {
            return Err(Error::invalid(FIELD, written.typ(), "is listed twice"));
        }
        rlimits.push(rlimit);
    }
    Ok(rlimits)
}

fn rlimit(written: &PosixRlimit) -> Rlimit {
    let resource = match written.typ() {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    Rlimit {
        resource,
        soft: written.soft(),
        hard: written.hard(),
        ..Rlimit::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn process(json: Value) -> Process {
        serde_json::from_value(json).unwrap()
    }

    fn init() -> agent::Process {
        let written = process(json!({
            "user": {"uid": 0, "gid": 0, "umask": 0o22}, "args": ["sh"], "cwd": "/",
            "capabilities": {"permitted": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
            "noNewPrivileges": true, "oomScoreAdj": 7,
        }));
        let filter = Seccomp {
            program: vec![6, 0, 0, 0, 0, 0, 0, 0],
            ..Seccomp::default()
        };
        init_process(&written, Some(filter), &mut Vec::new()).unwrap()
    }

    #[test]
    fn an_exec_without_wishes_is_bound_as_init_is() {
        let written = process(json!({
            "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
            "args": ["ls", "-l"], "cwd": "/tmp", "env": ["A=b=c"], "terminal": true,
            "consoleSize": {"height": 25, "width": 80},
        }));
        let (added, _) = exec_process(&written, &init()).unwrap();
        assert_eq!(added.args, ["ls", "-l"]);
        assert_eq!(
            (added.uid, added.gid, added.additional_gids),
            (5, 6, vec![7])
        );
        assert_eq!((added.columns, added.rows), (80, 25));
        assert_eq!(added.seccomp, init().seccomp);
        assert_eq!(added.capabilities, init().capabilities);
        assert_eq!(added.rlimits, init().rlimits);
        assert_eq!((added.umask, added.oom_score_adj), (Some(0o22), Some(7)));
        assert!(added.no_new_privileges);
    }

    #[test]
    fn an_exec_with_its_own_wishes_has_these() {
        let written = process(json!({
            "user": {"uid": 0, "gid": 0, "umask": 0}, "args": ["ls"], "cwd": "/",
            "capabilities": {"permitted": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}],
            "noNewPrivileges": false, "oomScoreAdj": 0,
        }));
        let (added, _) = exec_process(&written, &init()).unwrap();
        assert_eq!(added.capabilities.permitted, 1);
        assert_eq!(added.rlimits.len(), 1);
        assert_eq!(added.rlimits[0].resource, libc::RLIMIT_CPU);
        assert_eq!((added.umask, added.oom_score_adj), (Some(0), Some(0)));
        assert!(!added.no_new_privileges);
        assert_eq!(added.seccomp, init().seccomp, "nobody escapes the filter");
    }

    #[test]
    fn scheduling_is_in_numbers_of_the_kernel() {
        let written = process(json!({
            "user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
            "scheduler": {"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RECLAIM"],
                          "runtime": 1, "deadline": 2, "period": 3},
            "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 4},
        }));
        let init = init_process(&written, None, &mut Vec::new()).unwrap();
        assert_eq!((init.scheduler.policy, init.scheduler.flags), (6, 2));
        assert_eq!(init.scheduler.period_ns, 3);
        assert_eq!((init.io_priority.class, init.io_priority.priority), (3, 4));
        assert!(init.seccomp.is_none() && init.capabilities.is_none());
    }
}
