//! Terminals without a client in between: the caller's own, and the one that
//! goes through a console socket.

use std::fs;

use anyhow::{Context, Result, ensure};
use casemate_e2e::wait::until_true;
use casemate_e2e::{
    Bundle, ConsoleSocket, Container, Host, Scenario, Typist, processes, scenarios,
};
use serde_json::json;

use super::{
    CTRL_C, PROMPT, SOON, WIDER, WINDOW, answers, ask, comes_to_answer, foreground, signalled,
};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        run_in_the_foreground,
        exec_in_the_foreground,
        size_of_the_configuration,
        console_socket,
        console_socket_of_an_exec,
        hang_up,
        hang_up_of_an_exec,
    ]
}

/// A bundle whose process is a shell on a terminal.
fn shell(host: &Host) -> Result<Bundle> {
    Bundle::new(host, &["sh"])?.edit(|spec| {
        spec["process"]["terminal"] = json!(true);
        if let Some(variables) = spec["process"]["env"].as_array_mut() {
            variables.push(json!(format!("PS1={PROMPT}")));
        }
    })
}

/// The caller's own terminal becomes the container's, and is the caller's again.
fn run_in_the_foreground(host: &Host) -> Result<()> {
    let bundle = shell(host)?;
    let id = host.new_id();
    let line = format!(
        "stty -a >before; {} run --bundle {} {id}; code=$?; stty -a >after; exit $code",
        host.runtime.path.display(),
        bundle.path()
    );
    let mut typist = host.command("sh").args(["-c", &line]).on_terminal(WINDOW)?;
    typist.await_text(PROMPT, SOON)?;
    comes_to_answer(&mut typist, "stty size", "30 100")?;
    typist.resize(WIDER)?;
    comes_to_answer(&mut typist, "stty size", "50 132")?;
    foreground(&mut typist, "sleep 1000")?;
    signalled(&mut typist, CTRL_C, 130)?;
    typist.type_text("exit 11\r")?;
    typist.finish()?.exits(11)?;
    let mode = |name: &str| fs::read_to_string(host.dir.join(name)).map(|text| without_size(&text));
    ensure!(
        mode("before")? == mode("after")?,
        "the terminal was left in another mode"
    );
    host.oci(&["state", &id]).run()?.exits(1)?;
    Ok(())
}

/// What stty(1) prints, but for the size, which has changed.
fn without_size(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains("rows"));
    lines.collect::<Vec<_>>().join("\n")
}

fn exec_in_the_foreground(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    let prompt = format!("PS1={PROMPT}");
    let exec = host.oci(&["exec", "--tty", "--env", &prompt, &container.id, "sh"]);
    let mut typist = exec.on_terminal(WINDOW)?;
    typist.await_text(PROMPT, SOON)?;
    comes_to_answer(&mut typist, "stty size", "30 100")?;
    typist.resize(WIDER)?;
    comes_to_answer(&mut typist, "stty size", "50 132")?;
    typist.type_text("exit 12\r")?;
    typist.finish()?.exits(12)?;
    container.delete_force()
}

/// `create` with a console socket.
fn create<'h>(host: &'h Host, bundle: &Bundle) -> Result<(Container<'h>, Typist<'h>)> {
    let socket = ConsoleSocket::new(host)?;
    let container = Container::create_with(host, bundle, |create| {
        create.arg("--console-socket").arg(&socket.path)
    })?;
    Ok((container, socket.accept()?))
}

/// As conmon does it: the terminal comes with `create`, its size is set whenever
/// the user's changes.
fn console_socket(host: &Host) -> Result<()> {
    let (container, mut typist) = create(host, &shell(host)?)?;
    typist.resize(WINDOW)?;
    container.start()?;
    typist.await_text(PROMPT, SOON)?;
    comes_to_answer(&mut typist, "stty size", "30 100")?;
    typist.resize(WIDER)?;
    comes_to_answer(&mut typist, "stty size", "50 132")?;
    typist.type_text("seq 1 20000; exit 13\r")?;
    typist.await_text("\n19999\r\n20000\r\n", SOON)?;
    ensure!(container.wait(SOON)?.shell() == 13);
    typist.screen_ended()?;
    container.delete()
}

/// The size may be in the configuration, for clients that set none.
fn size_of_the_configuration(host: &Host) -> Result<()> {
    let bundle = shell(host)?
        .edit(|spec| spec["process"]["consoleSize"] = json!({"height": 21, "width": 77}))?;
    let (container, mut typist) = create(host, &bundle)?;
    container.start()?;
    typist.await_text(PROMPT, SOON)?;
    answers(&mut typist, "stty size", "21 77")?;
    typist.type_text("exit\r")?;
    ensure!(container.wait(SOON)?.shell() == 0);
    container.delete()
}

/// An exec of a client: detached, with a terminal.
fn exec<'h>(
    host: &'h Host,
    container: &Container<'_>,
    program: &[&str],
) -> Result<(i32, Typist<'h>)> {
    let socket = ConsoleSocket::new(host)?;
    let pid_file = host.new_folder("exec")?.join("pid");
    let prompt = format!("PS1={PROMPT}");
    let exec = host
        .oci(&["exec", "--detach", "--tty", "--env", &prompt])
        .arg("--console-socket")
        .arg(&socket.path)
        .arg("--pid-file")
        .arg(&pid_file)
        .arg(&container.id)
        .args(program);
    exec.run()?.ok()?;
    let pid = fs::read_to_string(&pid_file)?
        .parse()
        .context("the pid file")?;
    Ok((pid, socket.accept()?))
}

fn console_socket_of_an_exec(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    let (_, mut typist) = exec(host, &container, &["sh"])?;
    typist.resize(WINDOW)?;
    typist.await_text(PROMPT, SOON)?;
    comes_to_answer(&mut typist, "stty size", "30 100")?;
    ask(&mut typist, "true")?;
    typist.type_text("exit\r")?;
    typist.screen_ended()?;
    container.delete_force()
}

/// When the client's side of the terminal is gone, the shell is told, and ends.
fn hang_up(host: &Host) -> Result<()> {
    let (container, mut typist) = create(host, &shell(host)?)?;
    container.start()?;
    typist.await_text(PROMPT, SOON)?;
    ask(&mut typist, "echo $$")?;
    typist.hang_up()?;
    container
        .wait(SOON)
        .context("the shell goes on without a terminal")?;
    container.delete()
}

/// What does not end by itself is signalled.
fn hang_up_of_an_exec(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    let script = "trap 'echo told >/told; exit 3' HUP; echo ready; while :; do sleep 0.1; done";
    let (pid, mut typist) = exec(host, &container, &["sh", "-c", script])?;
    typist.await_text("ready\r\n", SOON)?;
    typist.hang_up()?;
    until_true("the end of the exec", SOON, || {
        Ok(processes::get(pid).is_none_or(|process| process.is_dead()))
    })?;
    let told = host
        .oci(&["exec", &container.id, "cat", "/told"])
        .run()?
        .ok()?;
    ensure!(told.text() == "told", "{told}");
    container.delete_force()
}
