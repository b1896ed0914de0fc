//! What `ps` would say of a process: proc(5), read by PID 1, who sees all.

use std::{fs, os::unix::fs::MetadataExt};

use casemate_protocol::agent::ProcessInfo;
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};

/// Longest command line that is passed on, in bytes.
const MAX_COMMAND: usize = 4096;

/// A process by its id; none when it has ended.
pub(super) fn process(pid: u32) -> Option<ProcessInfo> {
    let directory = format!("/proc/{pid}");
    let stat = fs::read_to_string(format!("{directory}/stat")).ok()?;
    let mut info = parse(&stat, ticks_per_second(), boot_time_ns())?;
    info.pid = pid;
    info.uid = fs::metadata(&directory).ok()?.uid();
    let arguments = fs::read(format!("{directory}/cmdline")).ok()?;
    if let Some(command) = joined(&arguments) {
        info.command = command;
    }
    Some(info)
}

/// The fields of /proc/PID/stat after the name, which may hold anything.
fn parse(stat: &str, ticks: u64, boot_ns: u64) -> Option<ProcessInfo> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Numbers as in proc(5), where the state is field 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let to_ns = |value: u64| value * (1_000_000_000 / ticks);
    Some(ProcessInfo {
        parent: field(4)? as u32,
        terminal: fields.get(7 - 3)?.parse::<i32>().ok()? as u32,
        cpu_ns: to_ns(field(14)? + field(15)?),
        started_at_ns: boot_ns + to_ns(field(22)?),
        command: format!("[{name}]"),
        ..Default::default()
    })
}

/// Arguments end with a zero byte each; kernel threads and zombies have none.
fn joined(arguments: &[u8]) -> Option<String> {
    let cut = &arguments[..arguments.len().min(MAX_COMMAND)];
    let text = String::from_utf8_lossy(cut).replace('\0', " ");
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

fn ticks_per_second() -> u64 {
    match sysconf(SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) if ticks > 0 => ticks as u64,
        // What Linux has told user space on every machine since 2.4.
        _ => 100,
    }
}

/// CLOCK_REALTIME when the guest booted, which start times are relative to.
fn boot_time_ns() -> u64 {
    let read = |clock| {
        let time = clock_gettime(clock).ok()?;
        Some(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
    };
    let difference = || read(ClockId::CLOCK_REALTIME)?.checked_sub(read(ClockId::CLOCK_BOOTTIME)?);
    difference().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_what_separates_fields() {
        let stat = "42 (a ) (b) S 7 42 42 34816 42 4194304 1 2 3 4 150 50 0 0 20 0 1 0 900 1 2";
        let info = parse(stat, 100, 1_000).unwrap();
        assert_eq!((info.parent, info.terminal), (7, 34816));
        assert_eq!(info.cpu_ns, 2_000_000_000);
        assert_eq!(info.started_at_ns, 9_000_001_000);
        assert_eq!(info.command, "[a ) (b]");
        assert!(parse("42 (cat) S 7", 100, 0).is_none());
    }

    #[test]
    fn this_process_is_found_with_its_arguments() {
        let own = process(std::process::id()).unwrap();
        assert_eq!(own.parent, nix::unistd::getppid().as_raw() as u32);
        assert_eq!(own.uid, nix::unistd::geteuid().as_raw());
        let program = std::env::args().next().unwrap();
        assert!(own.command.starts_with(&program), "{}", own.command);
        assert!(process(u32::MAX >> 1).is_none());
    }

    #[test]
    fn arguments_are_joined_and_cut() {
        assert_eq!(joined(b"sh\0-c\0true\0").as_deref(), Some("sh -c true"));
        assert_eq!(joined(b""), None);
        assert_eq!(
            joined(&vec![b'x'; 2 * MAX_COMMAND]).unwrap().len(),
            MAX_COMMAND
        );
    }
}
