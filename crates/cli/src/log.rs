//! Where events and the final error go.
//!
//! Without `--log` they go to standard error. With it, events go to the file
//! (in runc's form, which containerd and podman parse) and the final error to
//! both. containerd's shim has a FIFO for its log, to which it writes in the form
//! that containerd's own has.

mod logfmt;

use std::{
    fs::{File, OpenOptions},
    io::{IsTerminal, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::arguments::{Global, LogFormat, Verb};
use logfmt::Logfmt;

/// Starts the log of this process.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(global: &Global, verb: &Verb) -> Result<()> {
    let level = match verb {
        _ if global.debug => "debug",
        // As the configuration says.
        Verb::Monitor(monitor) => &monitor.log_level,
        Verb::StandIn(_) | Verb::Devices(_) | Verb::TemplateMaker => "info",
        _ => "warn",
    };
    let filter = filter(level, matches!(verb, Verb::Monitor(_)));
    // A log that cannot be written (full disk) must not end the process: the
    // subscriber would complain on standard error, which may be that log.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .log_internal_errors(false);
    match (&global.log, global.log_format) {
        (None, _) => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init(),
        (Some(path), LogFormat::Text) if is_fifo(path) => {
            let log = open_fifo(path)?;
            builder.event_format(Logfmt).with_writer(log).init();
        }
        (Some(path), LogFormat::Text) => builder.with_ansi(false).with_writer(append(path)?).init(),
        (Some(path), LogFormat::Json) => builder.json().with_writer(append(path)?).init(),
    }
    Ok(())
}

/// What is worth a line. Who calls a monitor gets every failure of the connection as an error of
/// the call, and decides; the library would say so beforehand on the user's standard error, also
/// of a monitor that has ended because it was asked to.
fn filter(level: &str, is_monitor: bool) -> EnvFilter {
    let library = if is_monitor { "warn" } else { "off" };
    EnvFilter::new(format!("warn,ttrpc={library},casemate={level}"))
}

/// Reports why a verb failed: one line on standard error, and in the log file.
pub fn failure(global: &Global, error: &anyhow::Error) {
    let message = one_line(error);
    eprintln!("casemate: {message}");
    let Some(path) = &global.log else { return };
    let time = humantime::format_rfc3339_seconds(SystemTime::now());
    let line = match global.log_format {
        LogFormat::Json => serde_json::json!({
            "level": "error",
            "msg": message,
            "time": time.to_string(),
        })
        .to_string(),
        LogFormat::Text => format!("time=\"{time}\" level=error msg={message:?}"),
    };
    let written = append(path).and_then(|mut file| Ok(writeln!(file, "{line}")?));
    if let Err(error) = written {
        eprintln!("casemate: {}", one_line(&error));
    }
}

/// An error with its causes in one line. Typed errors say their cause
/// themselves, so one that is already in the text is not said again.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line.replace('\n', " ")
}

fn is_fifo(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.file_type().is_fifo())
}

/// containerd's log of a shim. Lines wait in it while containerd is restarted;
/// when it is full they are lost, and nobody is held up.
fn open_fifo(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let options = options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    let file = options.open(path);
    file.with_context(|| format!("log {}", path.display()))
}

fn append(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(path);
    file.with_context(|| format!("log file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    /// What a process writes of an error of its own and of one that the library notes.
    fn written(is_monitor: bool) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter("warn", is_monitor))
            .with_ansi(false)
            .with_writer(file.reopen().unwrap())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!("our own");
            tracing::error!(target: "ttrpc::asynchronous::connection", "Broken pipe");
        });
        std::fs::read_to_string(file.path()).unwrap()
    }

    #[test]
    fn a_caller_does_not_hear_of_a_hung_up_line_twice() {
        let caller = written(false);
        assert!(caller.contains("our own") && !caller.contains("Broken pipe"));
        assert!(written(true).contains("Broken pipe"));
    }

    #[test]
    fn no_cause_is_said_twice() {
        let cause = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let typed = casemate_sandbox::state::Error::Io {
            path: "/run/x".into(),
            source: cause,
        };
        let error = Err::<(), _>(typed).context("state").unwrap_err();
        assert_eq!(
            one_line(&error),
            "state: /run/x: No space left on device (os error 28)"
        );
    }
}
