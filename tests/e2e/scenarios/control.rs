//! What is done to a running container as a whole: pause, limits, figures.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Bundle, Container, Host, Podman, Scenario, processes, scenarios};
use serde_json::Value;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        pause_and_resume,
        pause_in_the_wrong_state,
        exec_when_paused,
        delete_when_paused,
        processes_as_json,
        processes_in_the_wrong_state,
        figures_once,
        figures_again_and_again,
        podman_pause,
    ];
    let guest_cgroup = "runc's limits are in the cgroup of the host";
    all.extend([
        Scenario::new("process_table", process_table).only_vm("runc runs the host's ps"),
        Scenario::new("refused_verbs_say_why", refused_verbs_say_why)
            .only_vm("runc has CRIU for these"),
        Scenario::new("update_limits", update_limits).only_vm(guest_cgroup),
        Scenario::new("update_from_a_file", update_from_a_file).only_vm(guest_cgroup),
        Scenario::new("out_of_memory", out_of_memory).only_vm(guest_cgroup),
    ]);
    all
}

const SOON: Duration = Duration::from_secs(20);

/// A container that writes a line ten times a second.
fn ticking(host: &Host) -> Result<Container<'_>> {
    let script = "while :; do echo tick; sleep 0.1; done";
    let bundle = Bundle::new(host, &["sh", "-c", script])?;
    Container::run(host, &bundle)
}

fn idle(host: &Host) -> Result<Container<'_>> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    Container::run(host, &bundle)
}

fn ticks(container: &mut Container<'_>) -> usize {
    container.streams().written().len()
}

fn pause_and_resume(host: &Host) -> Result<()> {
    let mut container = ticking(host)?;
    until_true("a tick", SOON, || Ok(ticks(&mut container) > 0))?;
    host.oci(&["pause", &container.id]).run()?.ok()?;
    ensure!(container.status()? == "paused");
    // What was on its way arrives.
    std::thread::sleep(Duration::from_millis(300));
    let before = ticks(&mut container);
    std::thread::sleep(Duration::from_millis(700));
    ensure!(ticks(&mut container) == before, "it ticks on");
    host.oci(&["resume", &container.id]).run()?.ok()?;
    ensure!(container.status()? == "running");
    until_true("more ticks", SOON, || Ok(ticks(&mut container) > before))?;
    container.delete_force()
}

fn pause_in_the_wrong_state(host: &Host) -> Result<()> {
    let container = idle(host)?;
    let refused = |verb: &str| host.oci(&[verb, &container.id]).run()?.exits(1);
    one_clear_line(&refused("resume")?)?;
    host.oci(&["pause", &container.id]).run()?.ok()?;
    one_clear_line(&refused("pause")?)?;
    one_clear_line(&refused("start")?)?;
    host.oci(&["resume", &container.id]).run()?.ok()?;
    container.delete_force()?;
    for verb in ["pause", "resume"] {
        let unknown = host.oci(&[verb, "nobody"]).run()?.exits(1)?;
        contains(&one_clear_line(&unknown)?, "does not exist")?;
    }
    Ok(())
}

fn exec_when_paused(host: &Host) -> Result<()> {
    let container = idle(host)?;
    host.oci(&["pause", &container.id]).run()?.ok()?;
    let refused = host
        .oci(&["exec", &container.id, "true"])
        .run()?
        .exits(255)?;
    contains(&refused.errors(), "paused container")?;
    let held = host
        .oci(&["exec", "--ignore-paused", &container.id, "echo", "late"])
        .start()?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(held.written().is_empty(), "it runs in a paused container");
    host.oci(&["resume", &container.id]).run()?.ok()?;
    let held = held.finish()?.ok()?;
    ensure!(held.text() == "late", "{held}");
    container.delete_force()
}

fn delete_when_paused(host: &Host) -> Result<()> {
    let container = idle(host)?;
    host.oci(&["pause", &container.id]).run()?.ok()?;
    let refused = host.oci(&["delete", &container.id]).run()?.exits(1)?;
    contains(&one_clear_line(&refused)?, "not stopped")?;
    container.delete_force()
}

/// The ids mean something on the host, whoever asks.
fn processes_as_json(host: &Host) -> Result<()> {
    let container = idle(host)?;
    let list = host
        .oci(&["ps", "--format", "json", &container.id])
        .run()?
        .ok()?;
    let pids: Vec<i32> = serde_json::from_slice(&list.stdout)?;
    ensure!(pids.contains(&container.pid), "{list}");
    ensure!(
        pids.iter().all(|&pid| processes::get(pid).is_some()),
        "{list}"
    );
    container.delete_force()
}

/// The table shows what runs in the guest, and that alone.
fn process_table(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sh", "-c", "sleep 1001 & exec sleep 1002"])?;
    let container = Container::run(host, &bundle)?;
    let rows = || -> Result<Vec<String>> {
        let table = host.oci(&["ps", &container.id]).run()?.ok()?;
        Ok(table.text().lines().map(str::to_owned).collect())
    };
    // Between fork and exec a process still has its parent's arguments.
    until_true("both processes", SOON, || {
        let rows = rows()?;
        ensure!(rows[0].starts_with("UID "), "{rows:?}");
        let ends = |row: usize, end| rows.get(row).is_some_and(|row| row.ends_with(end));
        Ok(rows.len() == 3 && ends(1, "sleep 1002") && ends(2, "sleep 1001"))
    })?;
    container.delete_force()
}

fn processes_in_the_wrong_state(host: &Host) -> Result<()> {
    let unknown = host.oci(&["ps", "nobody"]).run()?.exits(1)?;
    contains(&one_clear_line(&unknown)?, "does not exist")?;
    Ok(())
}

fn figures(line: &str) -> Result<Value> {
    let event: Value = serde_json::from_str(line)?;
    ensure!(event["type"] == "stats", "{event}");
    Ok(event["data"].clone())
}

fn figures_once(host: &Host) -> Result<()> {
    let container = idle(host)?;
    let events = host
        .oci(&["events", "--stats", &container.id])
        .run()?
        .ok()?;
    let data = figures(&events.text())?;
    for path in ["/cpu/usage/total", "/memory/usage/usage", "/pids/current"] {
        let value = data.pointer(path).and_then(Value::as_u64);
        ensure!(
            value.with_context(|| format!("{path} in {data}"))? > 0,
            "{data}"
        );
    }
    container.delete_force()
}

/// The stream goes on until the container ends.
fn figures_again_and_again(host: &Host) -> Result<()> {
    let mut container = ticking(host)?;
    let events = host
        .oci(&["events", "--interval", "200ms", &container.id])
        .start()?;
    let lines = || {
        events
            .written()
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
    };
    until_true("three lines", SOON, || Ok(lines() >= 3))?;
    container.kill("KILL")?.ok()?;
    container.wait(SOON)?;
    if host.runtime.is_vm() {
        events.finish()?.ok()?;
    } else {
        events.signal(nix::sys::signal::Signal::SIGKILL)?;
        events.exit()?;
    }
    container.streams().output_ended()?;
    container.delete()
}

fn setting(host: &Host, container: &Container<'_>, file: &str) -> Result<String> {
    let path = format!("/sys/fs/cgroup/{file}");
    let cat = host
        .oci(&["exec", &container.id, "cat", &path])
        .run()?
        .ok()?;
    Ok(cat.text())
}

fn with_cgroup(host: &Host) -> Result<Container<'_>> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?.edit(|spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
            mounts.push(serde_json::json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["ro", "nosuid", "noexec", "nodev"],
            }));
        }
    })?;
    Container::run(host, &bundle)
}

fn update_limits(host: &Host) -> Result<()> {
    let container = with_cgroup(host)?;
    let flags = [
        "update",
        "--memory",
        "64m",
        "--memory-swap",
        "64m",
        "--pids-limit",
        "50",
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "100000",
        "--cpu-share",
        "512",
        &container.id,
    ];
    host.oci(&flags).run()?.ok()?;
    for (file, expected) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("pids.max", "50"),
        ("cpu.max", "20000 100000"),
        ("cpu.weight", "20"),
    ] {
        let value = setting(host, &container, file)?;
        ensure!(value == expected, "{file}: {value}");
    }
    // A limit that cannot be had changes nothing.
    let refused = host
        .oci(&[
            "update",
            "--pids-limit",
            "60",
            "--memory",
            "64m",
            "--memory-swap",
            "32m",
            &container.id,
        ])
        .run()?
        .exits(1)?;
    contains(&one_clear_line(&refused)?, "swap")?;
    ensure!(setting(host, &container, "pids.max")? == "50");
    container.delete_force()
}

fn update_from_a_file(host: &Host) -> Result<()> {
    let container = with_cgroup(host)?;
    let resources = r#"{"pids": {"limit": 33}, "memory": {"limit": 50331648}}"#;
    host.oci(&["update", "--resources", "-", &container.id])
        .input(resources)
        .run()?
        .ok()?;
    ensure!(setting(host, &container, "pids.max")? == "33");
    ensure!(setting(host, &container, "memory.max")? == "50331648");
    let garbage = host
        .oci(&["update", "-r", "-", &container.id])
        .input("{\"pids\":")
        .run()?
        .exits(1)?;
    one_clear_line(&garbage)?;
    ensure!(setting(host, &container, "pids.max")? == "33");
    container.delete_force()
}

/// A container that takes more than it may is killed, and it is said.
fn out_of_memory(host: &Host) -> Result<()> {
    let script = "until test -e /dev/go; do sleep 0.1; done; head -c 100000000 /dev/zero | tail";
    let bundle =
        Bundle::new(host, &["sh", "-c", &format!("{script}; sleep 1000")])?.edit(|spec| {
            spec["linux"]["resources"]["memory"] =
                serde_json::json!({"limit": 32 << 20, "swap": 32 << 20});
        })?;
    let container = Container::run(host, &bundle)?;
    let events = host
        .oci(&["events", "--interval", "300ms", &container.id])
        .start()?;
    let comes = |kind: &str| {
        let event = format!("\"type\":\"{kind}\"");
        until_true(&event, Duration::from_secs(60), || {
            Ok(String::from_utf8_lossy(&events.written()).contains(&event))
        })
    };
    comes("stats")?;
    let go = host.oci(&["exec", &container.id, "touch", "/dev/go"]);
    go.run()?.ok()?;
    comes("oom")?;
    container.delete_force()?;
    events.finish()?;
    Ok(())
}

fn podman_pause(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    podman.command(["pause", &id])?.run()?.ok()?;
    ensure!(podman.inspect(&id, "{{.State.Status}}")? == "paused");
    podman.command(["unpause", &id])?.run()?.ok()?;
    ensure!(podman.inspect(&id, "{{.State.Status}}")? == "running");
    podman.command(["exec", &id, "true"])?.run()?.ok()?;
    podman
        .command(["rm", "--force", "--time=0", &id])?
        .run()?
        .ok()?;
    Ok(())
}

fn refused_verbs_say_why(host: &Host) -> Result<()> {
    for verb in ["checkpoint", "restore"] {
        let refused = host
            .oci(&[verb, "--image-path", "/x", "nobody"])
            .run()?
            .exits(1)?;
        contains(&one_clear_line(&refused)?, "not supported")?;
    }
    Ok(())
}
