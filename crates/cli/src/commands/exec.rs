//! `exec`: one more process in a running container.

use std::{fs, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use casemate_sandbox::{
    policy::{Operation, allow},
    spec,
    state::{State, Status},
};
use serde_json::{Value, json};

use crate::{
    arguments::{Exec, Global},
    client::{Place, block_on},
    foreground::{self, HeldSignals},
    launch::{self, Addition},
    log,
};

/// Exit status of an exec that has not become a process, as with runc.
const FAILED: u8 = 255;

/// # Errors
/// Never: what goes wrong is reported here, for its exit status is its own.
pub fn run(global: &Global, arguments: &Exec) -> Result<ExitCode> {
    match exec(global, arguments) {
        Ok(status) => Ok(ExitCode::from(status)),
        Err(error) => {
            log::failure(global, &error.context("exec failed"));
            Ok(ExitCode::from(FAILED))
        }
    }
}

fn exec(global: &Global, arguments: &Exec) -> Result<u8> {
    let place = Place::of(global, &arguments.id)?;
    let state = place.state()?;
    refuse(arguments, &state)?;
    let process = match &arguments.process {
        Some(path) => from_file(path, arguments.tty),
        None => from_flags(arguments, &state),
    }?;
    let json = serde_json::to_vec(&process)?;
    let parsed = spec::parse_process(&json).context("process")?;
    let terminal = parsed.terminal().unwrap_or(false);
    ensure!(
        !(terminal && arguments.detach && arguments.console_socket.is_none()),
        "cannot allocate tty if casemate will detach without setting console socket"
    );
    ensure!(
        arguments.console_socket.is_none() || (terminal && arguments.detach),
        "cannot use console socket if casemate will not detach or allocate tty"
    );
    let exec = fresh_id()?;
    let held = (!arguments.detach).then(HeldSignals::hold).transpose()?;
    let launched = launch::add(Addition {
        place: &place,
        init_pid: state.pid,
        exec: &exec,
        process: json,
        command: parsed.args().as_deref().unwrap_or_default(),
        terminal,
        console_socket: arguments.console_socket.as_deref(),
        pid_file: arguments.pid_file.as_deref(),
        foreground: !arguments.detach,
    })?;
    match held {
        Some(held) => block_on(foreground::wait(&launched, &exec, held)),
        None => Ok(0),
    }
}

fn refuse(arguments: &Exec, state: &State) -> Result<()> {
    ensure!(
        arguments.preserve_fds == 0,
        "--preserve-fds {}: descriptors of the host cannot enter a virtual machine",
        arguments.preserve_fds
    );
    match state.status {
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Paused if !arguments.ignore_paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        status => Ok(allow(Operation::Exec, status)?),
    }
}

fn from_file(path: &std::path::Path, tty: bool) -> Result<Value> {
    let context = || format!("process file {}", path.display());
    let text = fs::read(path).with_context(context)?;
    let mut process: Value = serde_json::from_slice(&text).with_context(context)?;
    ensure!(process.is_object(), "{}: not an object", context());
    if tty {
        process["terminal"] = json!(true);
    }
    if process.get("user").is_none() {
        process["user"] = json!({"uid": 0, "gid": 0});
    }
    Ok(process)
}

/// The container's own process with what the flags change, as runc does it.
fn from_flags(arguments: &Exec, state: &State) -> Result<Value> {
    ensure!(!arguments.command.is_empty(), "no command to execute");
    let path = state.bundle.join("config.json");
    let context = || path.display().to_string();
    let text = fs::read(&path).with_context(context)?;
    let mut spec: Value = serde_json::from_slice(&text).with_context(context)?;
    let mut process = spec["process"].take();
    ensure!(process.is_object(), "{}: without a process", context());
    change(&mut process, arguments)?;
    Ok(process)
}

fn change(process: &mut Value, arguments: &Exec) -> Result<()> {
    process["args"] = json!(arguments.command);
    process["terminal"] = json!(arguments.tty);
    if let Some(cwd) = &arguments.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(user) = &arguments.user {
        let (uid, gid) = match user.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (user.as_str(), None),
        };
        process["user"]["uid"] = json!(number("user", uid)?);
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(number("group", gid)?);
        }
    }
    if arguments.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    for variable in &arguments.env {
        append(&mut process["env"], json!(variable));
    }
    for gid in &arguments.additional_gids {
        append(&mut process["user"]["additionalGids"], json!(gid));
    }
    for name in &arguments.cap {
        let name = capability(name)?;
        for set in ["bounding", "effective", "permitted", "ambient"] {
            append(&mut process["capabilities"][set], json!(name));
        }
    }
    for (flag, field) in [
        (&arguments.process_label, "selinuxLabel"),
        (&arguments.apparmor, "apparmorProfile"),
    ] {
        if let Some(label) = flag {
            process[field] = json!(label);
        }
    }
    Ok(())
}

fn number(what: &str, text: &str) -> Result<u32> {
    text.parse().ok().with_context(|| {
        format!("--user: {what} {text:?} is not a number; a VM's host cannot look names up")
    })
}

/// A capability by its name, with or without CAP_.
fn capability(text: &str) -> Result<String> {
    let name = text.to_ascii_uppercase();
    let name = match name.starts_with("CAP_") {
        true => name,
        false => format!("CAP_{name}"),
    };
    ensure!(
        spec::known_capabilities().any(|known| known == name),
        "--cap: unknown capability {text:?}"
    );
    Ok(name)
}

fn append(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(items) => items.push(item),
        None => *list = json!([item]),
    }
}

/// An id that no other exec has.
fn fresh_id() -> Result<String> {
    const SOURCE: &str = "/proc/sys/kernel/random/uuid";
    let uuid = fs::read_to_string(SOURCE).context(SOURCE)?;
    Ok(uuid.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Verb};

    fn changed(line: &str) -> Result<Value> {
        let line = format!("casemate exec {line}");
        let Verb::Exec(arguments) = Arguments::try_parse_from(line.split_whitespace())?.verb else {
            panic!("another verb")
        };
        let mut process = json!({
            "args": ["init"], "cwd": "/", "env": ["A=1"],
            "user": {"uid": 5, "gid": 6},
            "capabilities": {"bounding": ["CAP_KILL"]},
        });
        change(&mut process, &arguments)?;
        Ok(process)
    }

    #[test]
    fn flags_change_the_container_s_process() {
        let process = changed("-e B=2 -u 7:8 -g 9 --cwd /tmp --cap net_raw -t web ls -l").unwrap();
        assert_eq!(process["args"], json!(["ls", "-l"]));
        assert_eq!(process["env"], json!(["A=1", "B=2"]));
        assert_eq!(
            process["user"],
            json!({"uid": 7, "gid": 8, "additionalGids": [9]})
        );
        assert_eq!(
            (&process["cwd"], &process["terminal"]),
            (&json!("/tmp"), &json!(true))
        );
        let capabilities = &process["capabilities"];
        assert_eq!(capabilities["bounding"], json!(["CAP_KILL", "CAP_NET_RAW"]));
        assert_eq!(capabilities["effective"], json!(["CAP_NET_RAW"]));
    }

    #[test]
    fn without_flags_only_the_program_changes() {
        let process = changed("web true").unwrap();
        assert_eq!(process["user"], json!({"uid": 5, "gid": 6}));
        assert_eq!(process["terminal"], json!(false));
        assert!(process.get("noNewPrivileges").is_none());
    }

    #[test]
    fn what_is_no_number_and_no_capability_is_refused() {
        for line in [
            "-u root web true",
            "-u 1:x web true",
            "--cap nothing web true",
        ] {
            assert!(changed(line).is_err(), "{line}");
        }
    }
}
