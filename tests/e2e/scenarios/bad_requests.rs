//! Requests that cannot be granted, for every verb of the OCI command line:
//! runc's class of error, one line, and nothing is changed.

mod killed_calls;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use casemate_e2e::container::create_command;
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Container, Exit, Finished, Host, Scenario, scenarios};
use serde_json::json;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        unknown_container,
        created_container,
        running_container,
        paused_container,
        stopped_container,
        arguments,
        pid_file_that_cannot_be_written,
        console_socket_that_is_not_there,
        terminal_without_a_socket,
        process_file,
        resources_file,
    ];
    all.extend(killed_calls::scenarios());
    all
}

const SOON: Duration = Duration::from_secs(20);

/// A verb for a container, with the flags that come before its id and the words
/// that come behind.
fn call(host: &Host, verb: &str, id: &str) -> Result<Finished> {
    let words: Vec<&str> = verb.split(' ').collect();
    let line = match words[..] {
        ["exec"] => vec!["exec", id, "true"],
        ["kill", signal] => vec!["kill", id, signal],
        _ => [&words[..], &[id]].concat(),
    };
    host.oci(&line).run()
}

/// Each verb fails with this exit code and one line.
fn refused(host: &Host, id: &str, verbs: &[(&str, i32)]) -> Result<()> {
    for (verb, code) in verbs {
        let refused = call(host, verb, id)?.exits(*code)?;
        one_clear_line(&refused)?;
    }
    Ok(())
}

fn unknown_container(host: &Host) -> Result<()> {
    let verbs = [
        ("start", 1),
        ("state", 1),
        ("kill TERM", 1),
        ("delete", 1),
        ("pause", 1),
        ("resume", 1),
        ("ps", 1),
        ("exec", 255),
        ("events --stats", 1),
        ("update --pids-limit 20", 1),
    ];
    refused(host, "nobody", &verbs)?;
    for (verb, _) in verbs {
        contains(&call(host, verb, "nobody")?.errors(), "does not exist")?;
    }
    let listed = host.oci(&["list", "--quiet"]).run()?.ok()?;
    ensure!(listed.text().is_empty(), "{listed}");
    Ok(())
}

/// A container that writes what it hears, and is as it was after all refusals.
fn unchanged(
    host: &Host,
    container: &Container<'_>,
    status: &str,
    verbs: &[(&str, i32)],
) -> Result<()> {
    refused(host, &container.id, verbs)?;
    let bundle = Bundle::new(host, &["true"])?;
    let again = create_command(host, &bundle, &container.id)
        .run()?
        .exits(1)?;
    contains(&one_clear_line(&again)?, "exist")?;
    ensure!(
        container.status()? == status,
        "it is {}",
        container.status()?
    );
    Ok(())
}

fn idle(host: &Host) -> Result<Container<'_>> {
    Container::create(host, &Bundle::new(host, &["sh", "-c", "sleep 1000"])?)
}

/// One that was not started is deleted like one that has ended, as runc does.
fn created_container(host: &Host) -> Result<()> {
    let container = idle(host)?;
    unchanged(host, &container, "created", &[("resume", 1)])?;
    container.delete()?;
    container.wait(SOON)?;
    host.oci(&["state", &container.id]).run()?.exits(1)?;
    Ok(())
}

fn running_container(host: &Host) -> Result<()> {
    let container = idle(host)?;
    container.start()?;
    let verbs = [
        ("start", 1),
        ("resume", 1),
        ("delete", 1),
        ("kill NOSUCH", 1),
        ("kill 999", 1),
    ];
    unchanged(host, &container, "running", &verbs)?;
    host.oci(&["exec", &container.id, "true"]).run()?.ok()?;
    container.delete_force()
}

fn paused_container(host: &Host) -> Result<()> {
    let container = idle(host)?;
    container.start()?;
    host.oci(&["pause", &container.id]).run()?.ok()?;
    let verbs = [("start", 1), ("pause", 1), ("delete", 1), ("exec", 255)];
    unchanged(host, &container, "paused", &verbs)?;
    host.oci(&["resume", &container.id]).run()?.ok()?;
    host.oci(&["exec", &container.id, "true"]).run()?.ok()?;
    container.delete_force()
}

fn stopped_container(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["true"])?)?;
    container.wait(SOON)?;
    until_true("the end", SOON, || Ok(container.status()? == "stopped"))?;
    let verbs = [
        ("start", 1),
        ("pause", 1),
        ("resume", 1),
        ("exec", 255),
        ("events --stats", 1),
    ];
    unchanged(host, &container, "stopped", &verbs)?;
    container.delete()
}

/// What is not there, too much, or makes no sense.
fn arguments(host: &Host) -> Result<()> {
    let container = idle(host)?;
    container.start()?;
    let id = container.id.as_str();
    let wrong: [&[&str]; 14] = [
        &["start"],
        &["kill"],
        &["delete"],
        &["exec"],
        &["exec", id],
        &["pause", id, id],
        &["resume"],
        &["ps", "--format", "poem", id],
        &["events", "--interval", "soon", id],
        &["update", "--memory", "much", id],
        &["update", "--resources", "/no/such/file", id],
        &["exec", "--process", "/no/such/file", id],
        &["delete", "--gently", id],
        &["juggle", id],
    ];
    for line in wrong {
        let refused = host.oci(line).run()?;
        ensure!(refused.exit.shell() != 0, "{refused}");
        ensure!(!refused.errors().contains("panicked"), "{refused}");
    }
    ensure!(container.status()? == "running");
    container.delete_force()
}

/// Nothing of the container is left, and its id is free.
fn gone(host: &Host, id: &str) -> Result<()> {
    host.oci(&["state", id]).run()?.exits(1)?;
    let bundle = Bundle::new(host, &["true"])?;
    let create = create_command(host, &bundle, id).start()?;
    ensure!(create.exit()? == Exit::Code(0), "the id is not free");
    host.oci(&["delete", "--force", id]).run()?.ok()?;
    create.finish()?;
    Ok(())
}

fn create_with(host: &Host, bundle: &Bundle, flags: &[&str]) -> Result<()> {
    let id = host.new_id();
    let create = [&["create", "--bundle", bundle.path()], flags, &[&id]].concat();
    let refused = host.oci(&create).run()?;
    ensure!(refused.exit.shell() == 1, "{refused}");
    one_clear_line(&refused)?;
    gone(host, &id)
}

fn pid_file_that_cannot_be_written(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    create_with(host, &bundle, &["--pid-file", "/no/such/folder/pid"])?;
    let container = Container::run(host, &bundle)?;
    let flags = [
        "exec",
        "--detach",
        "--pid-file",
        "/no/such/folder/pid",
        &container.id,
    ];
    let exec = host
        .oci(&[&flags[..], &["sleep", "1001"]].concat())
        .run()?
        .exits(255)?;
    one_clear_line(&exec)?;
    // The process did not outlive its refusal.
    until_true("the end of the exec", SOON, || {
        let ps = host
            .oci(&["exec", &container.id, "ps", "-o", "args"])
            .run()?
            .ok()?;
        Ok(!ps.text().contains("sleep 1001"))
    })?;
    container.delete_force()
}

fn on_terminal(host: &Host) -> Result<Bundle> {
    Bundle::new(host, &["sh"])?.edit(|spec| spec["process"]["terminal"] = json!(true))
}

fn console_socket_that_is_not_there(host: &Host) -> Result<()> {
    let deaf = host.dir.join("deaf");
    drop(UnixListener::bind(&deaf)?);
    let file = host.dir.join("file");
    fs::write(&file, "")?;
    for path in [Path::new("/no/such/socket"), &deaf, &file] {
        create_with(
            host,
            &on_terminal(host)?,
            &["--console-socket", &path.to_string_lossy()],
        )?;
    }
    let container = idle(host)?;
    container.start()?;
    let deaf = deaf.to_string_lossy();
    let flags = [
        "exec",
        "--detach",
        "--tty",
        "--console-socket",
        &deaf,
        &container.id,
    ];
    host.oci(&[&flags[..], &["sh"]].concat())
        .run()?
        .exits(255)?;
    host.oci(&["exec", &container.id, "true"]).run()?.ok()?;
    container.delete_force()
}

/// A terminal goes with a socket and a socket with a terminal.
fn terminal_without_a_socket(host: &Host) -> Result<()> {
    create_with(host, &on_terminal(host)?, &[])?;
    let socket = host.dir.join("socket");
    let _listener = UnixListener::bind(&socket)?;
    let plain = Bundle::new(host, &["true"])?;
    create_with(
        host,
        &plain,
        &["--console-socket", &socket.to_string_lossy()],
    )
}

fn process_file(host: &Host) -> Result<()> {
    let container = idle(host)?;
    container.start()?;
    let file = host.dir.join("process.json");
    let path = file.to_string_lossy().into_owned();
    let process = |change: fn(&mut serde_json::Value)| {
        let mut process = json!({"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        change(&mut process);
        process.to_string()
    };
    let texts = [
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "\0\u{1}garbage".to_owned(),
        process(|p| p["args"] = json!("true")),
        process(|p| p["args"] = json!([])),
        process(|p| p["cwd"] = json!("tmp")),
        process(|p| p["user"] = json!({"uid": -1})),
        process(|p| p["capabilities"] = json!({"bounding": "all"})),
    ];
    for text in texts {
        fs::write(&file, &text)?;
        let refused = host
            .oci(&["exec", "--process", &path, &container.id])
            .run()?;
        ensure!(refused.exit.shell() != 0, "{text}: {refused}");
        ensure!(!refused.errors().contains("panicked"), "{text}: {refused}");
    }
    fs::write(&file, process(|_| ()))?;
    host.oci(&["exec", "--process", &path, &container.id])
        .run()?
        .ok()?;
    container.delete_force()
}

fn resources_file(host: &Host) -> Result<()> {
    let container = idle(host)?;
    container.start()?;
    for text in [
        "",
        "{\"memory\":",
        "[]",
        "{\"pids\": {\"limit\": \"many\"}}",
    ] {
        let update = host.oci(&["update", "--resources", "-", &container.id]);
        let refused = update.input(text).run()?;
        ensure!(refused.exit.shell() == 1, "{text}: {refused}");
    }
    ensure!(container.status()? == "running");
    container.delete_force()
}
