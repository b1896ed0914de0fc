//! `ps`: the processes of a container.
//!
//! The table is the guest's truth. The JSON list is what clients feed back into
//! the host's own `ps` (`docker top` does), so it names the processes that
//! stand for the container's own there; ids of the guest would be those of
//! strangers.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use casemate_protocol::monitor::ContainerProcess;
use casemate_sandbox::policy::{Operation, allow};

use crate::{
    arguments::{Format, Global, Ps},
    client::{Monitor, Place, block_on},
};

/// Major device numbers of pseudo terminals (devices.txt: Unix98 PTY slaves).
const PTY_MAJORS: std::ops::RangeInclusive<u32> = 136..=143;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// # Errors
/// When the container does not run.
pub fn run(global: &Global, arguments: &Ps) -> Result<ExitCode> {
    let place = Place::of(global, &arguments.id)?;
    allow(Operation::Signal, place.state()?.status)?;
    let processes = block_on(async { Monitor::connect(&place)?.processes().await })?;
    match arguments.format {
        Format::Json => {
            let pids = processes.iter().filter_map(|process| process.host_pid);
            println!("{}", serde_json::to_string(&pids.collect::<Vec<_>>())?);
        }
        Format::Table => print!("{}", table(&processes, SystemTime::now())),
    }
    Ok(ExitCode::SUCCESS)
}

/// As `ps -ef` prints it; times of day are UTC.
fn table(processes: &[ContainerProcess], now: SystemTime) -> String {
    let mut text = format!(
        "{:<8} {:>7} {:>7} {:>2} {:>10} {:<8} {:>8} {}\n",
        "UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"
    );
    for process in processes {
        let started = UNIX_EPOCH + Duration::from_nanos(process.started_at_ns);
        let age = now.duration_since(started).unwrap_or_default();
        let used = Duration::from_nanos(process.cpu_ns);
        let percent = (used.as_secs_f64() * 100.0 / age.as_secs_f64().max(1.0)) as u64;
        let seconds = used.as_secs();
        text.push_str(&format!(
            "{:<8} {:>7} {:>7} {:>2} {:>10} {:<8} {:02}:{:02}:{:02} {}\n",
            process.uid,
            process.pid,
            process.parent,
            percent.min(99),
            start_time(started, age),
            terminal(process.terminal),
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            process.command,
        ));
    }
    text
}

/// The hour of what began within a day, else the date.
fn start_time(started: SystemTime, age: Duration) -> String {
    let full = humantime::format_rfc3339_seconds(started).to_string();
    match age < DAY {
        true => full[11..16].to_owned(),
        false => full[..10].to_owned(),
    }
}

/// The name of a terminal by its device number (as in proc(5): minor in bits
/// 31-20 and 7-0, major in 15-8).
fn terminal(device: u32) -> String {
    let (major, minor) = (
        (device >> 8) & 0xff,
        (device & 0xff) | ((device >> 12) & 0xfff00),
    );
    match device {
        0 => "?".to_owned(),
        _ if PTY_MAJORS.contains(&major) => {
            format!("pts/{}", (major - PTY_MAJORS.start()) * 256 + minor)
        }
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_as_ps_prints_it() {
        let process = ContainerProcess {
            pid: 61,
            parent: 60,
            uid: 1000,
            started_at_ns: 3_661_000_000_000,
            cpu_ns: 50_000_000_000,
            terminal: (136 << 8) | 3,
            command: "sleep 1000".into(),
            ..Default::default()
        };
        let now = UNIX_EPOCH + Duration::from_secs(3761);
        let expected = "\
UID          PID    PPID  C      STIME TTY          TIME CMD
1000          61      60 50      01:01 pts/3    00:00:50 sleep 1000
";
        assert_eq!(table(&[process], now), expected);
    }

    #[test]
    fn terminals_have_names() {
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal((137 << 8) | 1), "pts/257");
        assert_eq!(terminal((4 << 8) | 64), "4:64");
    }

    #[test]
    fn what_is_old_has_a_date() {
        let started = UNIX_EPOCH + Duration::from_secs(60);
        assert_eq!(start_time(started, DAY), "1970-01-01");
        assert_eq!(start_time(started, Duration::ZERO), "00:01");
    }
}
