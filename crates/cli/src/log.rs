//! Where events and the final error go.
//!
//! Without `--log` they go to standard error. With it, events go to the file
//! (in runc's form, which containerd and podman parse) and the final error to
//! both.

use std::{
    fs::{File, OpenOptions},
    io::{IsTerminal, Write},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::arguments::{Global, LogFormat, Verb};

/// Starts the log of this process.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(global: &Global, verb: &Verb) -> Result<()> {
    let long_lived = matches!(verb, Verb::Monitor(_) | Verb::StandIn(_) | Verb::Devices(_));
    let level = match (global.debug, long_lived) {
        (true, _) => "debug",
        (false, true) => "info",
        (false, false) => "warn",
    };
    let filter = EnvFilter::new(format!("warn,casemate={level}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match (&global.log, global.log_format) {
        (None, _) => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init(),
        (Some(path), LogFormat::Text) => builder.with_ansi(false).with_writer(append(path)?).init(),
        (Some(path), LogFormat::Json) => builder.json().with_writer(append(path)?).init(),
    }
    Ok(())
}

/// Reports why a verb failed: one line on standard error, and in the log file.
pub fn failure(global: &Global, error: &anyhow::Error) {
    let message = format!("{error:#}");
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
        eprintln!("casemate: {error:#}");
    }
}

fn append(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(path);
    file.with_context(|| format!("log file {}", path.display()))
}
