//! The OCI command line, called as conmon and containerd's shim call it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::{Bundle, Container, Exit, Host, Scenario, scenarios, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        states,
        create_waits,
        signals,
        killed,
        kill_after_the_end,
        delete_running,
        delete_unknown,
        duplicate_id,
        hostile_ids,
        run_in_the_foreground,
        run_detached,
        forwarded_signals,
        other_root,
        annotations,
        writes_to_the_root,
    ]
}

const SOON: Duration = Duration::from_secs(10);

/// What `state` and `list` say from the beginning to the end.
fn states(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sh", "-c", "cat; exit 3"])?;
    let mut container = Container::create_with(host, &bundle, |create| create.input_by_hand())?;
    let created = container.state()?;
    expect_state(&created, &container, &bundle, "created")?;
    container.start()?;
    expect_state(&container.state()?, &container, &bundle, "running")?;
    let listed = listed(host)?;
    ensure!(listed.len() == 1, "{listed:?}");
    expect_state(&listed[0], &container, &bundle, "running")?;
    let quiet = host.oci(&["list", "--quiet"]).run()?.ok()?;
    ensure!(quiet.text() == container.id, "{quiet}");
    drop(container.streams().stdin.take());
    ensure!(container.wait(SOON)? == Exit::Code(3));
    wait::until_true("the status `stopped`", SOON, || {
        Ok(container.status()? == "stopped")
    })?;
    let stopped = container.state()?;
    ensure!(stopped["pid"] == 0, "{stopped}");
    ensure!(stopped["created"] == created["created"], "{stopped}");
    container.delete()?;
    let gone = host.oci(&["state", &container.id]).run()?.exits(1)?;
    contains(&one_clear_line(&gone)?, "does not exist")?;
    ensure!(
        host.oci(&["list", "--format", "json"])
            .run()?
            .ok()?
            .text()
            .trim()
            == "null"
            || self::listed(host)?.is_empty()
    );
    Ok(())
}

fn expect_state(
    state: &Value,
    container: &Container<'_>,
    bundle: &Bundle,
    status: &str,
) -> Result<()> {
    const KEYS: [&str; 8] = [
        "bundle",
        "created",
        "id",
        "ociVersion",
        "owner",
        "pid",
        "rootfs",
        "status",
    ];
    let object = state.as_object().context("an object")?;
    let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    ensure!(keys == KEYS, "{state}");
    ensure!(state["status"] == status, "{status} was expected: {state}");
    ensure!(
        state["id"] == container.id.as_str() && state["pid"] == container.pid,
        "{state}"
    );
    ensure!(state["bundle"] == bundle.path(), "{state}");
    ensure!(
        state["rootfs"] == bundle.dir.join("rootfs").to_string_lossy().as_ref(),
        "{state}"
    );
    let created = state["created"].as_str().unwrap_or_default();
    ensure!(
        created.starts_with("20") && created.ends_with('Z'),
        "{state}"
    );
    Ok(())
}

fn listed(host: &Host) -> Result<Vec<Value>> {
    let list = host.oci(&["list", "--format", "json"]).run()?.ok()?;
    let parsed: Value = serde_json::from_slice(&list.stdout)?;
    Ok(parsed.as_array().cloned().unwrap_or_default())
}

/// Nothing of the container runs before `start`.
fn create_waits(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    let bundle =
        Bundle::new(host, &["touch", "/data/ran"])?.bind(&data.to_string_lossy(), "/data")?;
    let container = Container::create(host, &bundle)?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(!data.join("ran").exists(), "the process ran before start");
    container.start()?;
    container.end(0)?;
    ensure!(data.join("ran").exists());
    Ok(())
}

/// Signals by name, by number and by default.
fn signals(host: &Host) -> Result<()> {
    let script = "trap 'echo usr1' USR1; trap 'echo usr2' USR2; trap 'echo hup' HUP; trap 'echo term; exit 4' TERM; \
                  echo ready; while :; do sleep 0.05; done";
    let bundle = Bundle::new(host, &["sh", "-c", script])?;
    let mut container = Container::run(host, &bundle)?;
    heard(&mut container, "ready\n")?;
    let heard_so_far = [("SIGUSR1", "usr1\n"), ("USR2", "usr2\n"), ("1", "hup\n")];
    for (signal, answer) in heard_so_far {
        container.kill(signal)?.ok()?;
        heard(&mut container, answer)?;
    }
    let unknown = container.kill("SIGNOTHING")?.exits(1)?;
    contains(&one_clear_line(&unknown)?, "SIGNOTHING")?;
    host.oci(&["kill", &container.id]).run()?.ok()?;
    let text = container.end(4)?;
    ensure!(text == "ready\nusr1\nusr2\nhup\nterm\n", "{text}");
    Ok(())
}

fn heard(container: &mut Container<'_>, end: &str) -> Result<()> {
    wait::until_true(end.trim(), SOON, || {
        Ok(container.streams().written().ends_with(end.as_bytes()))
    })
}

/// Signal 9 ends a container, started or not.
fn killed(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let running = Container::run(host, &bundle)?;
    running.kill("KILL")?.ok()?;
    running.end(137)?;
    let created = Container::create(host, &bundle)?;
    created.kill("9")?.ok()?;
    created.end(137)?;
    Ok(())
}

/// There is nothing to kill in a container that has ended.
fn kill_after_the_end(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["true"])?)?;
    ensure!(container.wait(SOON)? == Exit::Code(0));
    wait::until_true("the status `stopped`", SOON, || {
        Ok(container.status()? == "stopped")
    })?;
    let refused = container.kill("TERM")?.exits(1)?;
    // containerd tells "gone already" from a failure by these words.
    let line = one_clear_line(&refused)?;
    ensure!(
        line.contains("container not running") || line.contains("process already finished"),
        "{line}"
    );
    container.delete()
}

fn delete_running(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    let refused = host.oci(&["delete", &container.id]).run()?.exits(1)?;
    contains(&one_clear_line(&refused)?, "not stopped")?;
    ensure!(container.status()? == "running");
    container.delete_force()?;
    ensure!(container.wait(SOON)?.shell() == 137);
    host.oci(&["state", &container.id]).run()?.exits(1)?;
    Ok(())
}

/// Clients delete twice, so a forced one of nothing is fine.
fn delete_unknown(host: &Host) -> Result<()> {
    host.oci(&["delete", "--force", "nobody"]).run()?.ok()?;
    for verb in ["delete", "start", "state", "kill"] {
        let refused = host.oci(&[verb, "nobody"]).run()?.exits(1)?;
        contains(&one_clear_line(&refused)?, "does not exist")?;
    }
    Ok(())
}

fn duplicate_id(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let first = Container::create(host, &bundle)?;
    let second = casemate_e2e::container::create_command(host, &bundle, &first.id)
        .run()?
        .exits(1)?;
    contains(&one_clear_line(&second)?, "already exists")?;
    ensure!(first.status()? == "created");
    first.start()?;
    ensure!(first.status()? == "running");
    first.delete_force()
}

/// An id becomes a file name: it may not lead anywhere else.
fn hostile_ids(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["true"])?;
    for id in ["../x", "a/b", ".", "..", "", "a b", "a\nb"] {
        let refused = host.oci(&["create", "--bundle", bundle.path(), id]).run()?;
        ensure!(refused.exit.shell() == 1, "id {id:?}: {refused}");
    }
    Ok(())
}

/// `run` passes input, output and exit code, and deletes the container.
fn run_in_the_foreground(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sh", "-c", "cat; echo err >&2; exit 9"])?;
    let id = host.new_id();
    // Without --bundle the bundle is the current folder.
    let run = host
        .oci(&["run", &id])
        .folder(&bundle.dir)
        .input("through\n")
        .run()?
        .exits(9)?;
    ensure!(run.text() == "through" && run.errors() == "err", "{run}");
    host.oci(&["state", &id]).run()?.exits(1)?;
    Ok(())
}

fn run_detached(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let id = host.new_id();
    let pid_file = host.dir.join("detached.pid");
    let mut run = host
        .oci(&["run", "--detach", "--bundle", bundle.path(), "--pid-file"])
        .arg(&pid_file)
        .arg(&id)
        .start()?;
    ensure!(run.exit()? == Exit::Code(0));
    let state = host.oci(&["state", &id]).run()?.ok()?;
    let state: Value = serde_json::from_slice(&state.stdout)?;
    ensure!(state["status"] == "running", "{state}");
    let pid: i32 = fs::read_to_string(pid_file)?.parse()?;
    ensure!(state["pid"] == pid, "{state}");
    host.oci(&["delete", "--force", &id]).run()?.ok()?;
    run.output_ended()
}

/// Who runs a container in the foreground signals it by its runtime's process.
fn forwarded_signals(host: &Host) -> Result<()> {
    let script = "trap 'exit 21' TERM; echo ready; while :; do sleep 0.05; done";
    let bundle = Bundle::new(host, &["sh", "-c", script])?;
    let run = host
        .oci(&["run", "--bundle", bundle.path(), &host.new_id()])
        .start()?;
    wait::until_true("the container to be ready", Duration::from_secs(30), || {
        Ok(run.written() == b"ready\n")
    })?;
    run.signal(Signal::SIGTERM)?;
    run.finish()?.exits(21)?;
    Ok(())
}

/// The state of containers is where `--root` says.
fn other_root(host: &Host) -> Result<()> {
    let root = host.new_folder("root")?;
    let root = root.to_string_lossy();
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let id = host.new_id();
    let mut run = host
        .oci(&[
            "--root",
            &root,
            "run",
            "--detach",
            "--bundle",
            bundle.path(),
            &id,
        ])
        .start()?;
    ensure!(run.exit()? == Exit::Code(0));
    ensure!(fs::read_dir(&*root)?.count() > 0, "nothing is in {root}");
    host.oci(&["state", &id]).run()?.exits(1)?;
    host.oci(&["--root", &root, "delete", "--force", &id])
        .run()?
        .ok()?;
    run.output_ended()?;
    let left: Vec<_> = fs::read_dir(&*root)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn annotations(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["true"])?.edit(|spec| {
        spec["annotations"] = serde_json::json!({"org.example.purpose": "siege"});
    })?;
    let container = Container::create(host, &bundle)?;
    let state = container.state()?;
    ensure!(
        state["annotations"]["org.example.purpose"] == "siege",
        "{state}"
    );
    container.start()?;
    container.end(0)?;
    Ok(())
}

/// What a container changes in its root is in the bundle.
fn writes_to_the_root(host: &Host) -> Result<()> {
    let script = "echo kept >/etc/kept; chmod 600 /etc/kept; rm /etc/group; cat /proc/1/comm; cat /etc/hostname; hostname";
    let bundle = Bundle::new(host, &["sh", "-c", script])?;
    let root = bundle.dir.join("rootfs");
    fs::write(root.join("etc/hostname"), "from the bundle\n")?;
    let text = Container::run(host, &bundle)?.end(0)?;
    ensure!(text == "sh\nfrom the bundle\nfort\n", "{text}");
    ensure!(fs::read_to_string(root.join("etc/kept"))? == "kept\n");
    ensure!(!root.join("etc/group").exists());
    Ok(())
}
