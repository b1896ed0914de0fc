//! Containers that share namespaces: with Casemate they share a virtual machine.

mod clients;
mod ends;
mod late_files;
mod sandbox;

use std::time::Duration;

use anyhow::{Result, ensure};
use casemate_e2e::container::create_command;
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Container, Host, Scenario, scenarios};
use serde_json::{Value, json};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        shared_and_own,
        of_a_member,
        verbs_of_each,
        own_limits,
        user_namespaces,
        hooks_of_a_member,
    ];
    all.extend(
        scenarios![what_cannot_be]
            .into_iter()
            .map(|one| one.only_vm("runc's containers can be in namespaces of everybody")),
    );
    all.extend(ends::scenarios());
    all.extend(late_files::scenarios());
    all.extend(sandbox::scenarios());
    all.extend(clients::scenarios());
    all
}

const SOON: Duration = Duration::from_secs(30);

/// Says that it is there, and stays.
const STAY: &[&str] = &["sh", "-c", "echo ready; exec sleep 1000"];

/// A bundle whose container is in namespaces of another one.
fn member(host: &Host, of: &Container<'_>, kinds: &[&str], arguments: &[&str]) -> Result<Bundle> {
    Bundle::new(host, arguments)?.edit(|spec| join(spec, of.pid, kinds))
}

pub(crate) fn join(spec: &mut Value, pid: i32, kinds: &[&str]) {
    if kinds.contains(&"uts") {
        // That of the other container stays.
        spec["hostname"] = Value::Null;
    }
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    for namespace in namespaces.into_iter().flatten() {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        if kinds.contains(&kind.as_str()) {
            let file = if kind == "network" { "net" } else { &kind };
            namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
        }
    }
}

/// Starts a container and waits until its program runs.
fn running<'h>(host: &'h Host, bundle: &Bundle) -> Result<Container<'h>> {
    let mut container = Container::run(host, bundle)?;
    until_true("the program", SOON, || {
        Ok(container.streams().written() == b"ready\n")
    })?;
    Ok(container)
}

fn exec(host: &Host, container: &Container<'_>, script: &str) -> Result<String> {
    let done = host
        .oci(&["exec", &container.id, "sh", "-c", script])
        .run()?;
    Ok(done.ok()?.text())
}

/// What two containers have in common is what was asked for, and no more.
fn shared_and_own(host: &Host) -> Result<()> {
    const LOOK: &str = "hostname; ls /dev/mqueue | grep -c letter; ps -o args | grep -c '[s]leep 1000'; \
        ls / | grep -c mine; nc -w 5 127.0.0.1 7000 < /dev/null";
    let first = Bundle::new(host, STAY)?.edit(|spec| spec["hostname"] = json!("tower"))?;
    let first = running(host, &first)?;
    let serve = "touch /mine /dev/mqueue/letter; \
        (while :; do echo over lo | nc -l -p 7000; done) > /dev/null 2>&1 &";
    exec(host, &first, serve)?;
    let look = |kinds: &[&str]| -> Result<String> {
        let bundle = member(host, &first, kinds, &["sh", "-c", LOOK])?;
        let told = Container::run(host, &bundle)?.end(0)?;
        Ok(told.lines().collect::<Vec<_>>().join(" "))
    };
    let all = look(&["network", "ipc", "uts", "pid"])?;
    ensure!(all == "tower 1 1 0 over lo", "{all}");
    let network = look(&["network"])?;
    ensure!(network == "fort 0 0 0 over lo", "{network}");
    first.delete_force()
}

/// Who joins a member joins what that has joined.
fn of_a_member(host: &Host) -> Result<()> {
    let first = Bundle::new(host, STAY)?.edit(|spec| spec["hostname"] = json!("tower"))?;
    let first = running(host, &first)?;
    let second = running(
        host,
        &member(host, &first, &["network", "uts", "ipc"], STAY)?,
    )?;
    let look = ["sh", "-c", "hostname; ps -o args | grep -c '[s]leep 1000'"];
    let third = member(host, &second, &["network", "uts", "ipc", "pid"], &look)?;
    let told = Container::run(host, &third)?.end(0)?;
    ensure!(told == "tower\n1\n", "{told}");
    second.delete_force()?;
    first.delete_force()
}

/// Every verb is about the container that it names.
fn verbs_of_each(host: &Host) -> Result<()> {
    let first = running(host, &Bundle::new(host, STAY)?)?;
    let second = running(host, &member(host, &first, &["network", "ipc"], STAY)?)?;
    let listed = host.oci(&["list", "-q"]).run()?.ok()?.text();
    for container in [&first, &second] {
        contains(&listed, &container.id)?;
        ensure!(container.state()?["pid"] == json!(container.pid));
    }
    ensure!(first.pid != second.pid);
    host.oci(&["pause", &second.id]).run()?.ok()?;
    ensure!(first.status()? == "running" && second.status()? == "paused");
    ensure!(exec(host, &first, "echo goes on")? == "goes on");
    host.oci(&["resume", &second.id]).run()?.ok()?;
    let marked = "touch /mark; ls / | grep -c mark";
    ensure!(exec(host, &second, marked)? == "1");
    ensure!(exec(host, &first, "ls / | grep -c mark || true")? == "0");
    let table = host.oci(&["ps", &second.id]).run()?.ok()?.text();
    ensure!(table.matches("sleep 1000").count() == 1, "{table}");
    for container in [&first, &second] {
        let stats = host
            .oci(&["events", "--stats", &container.id])
            .run()?
            .ok()?;
        contains(&stats.text(), &container.id)?;
    }
    second.kill("KILL")?.ok()?;
    ensure!(second.wait(SOON)?.shell() == 137);
    until_true("the end of one", SOON, || Ok(second.status()? == "stopped"))?;
    ensure!(first.status()? == "running");
    second.delete()?;
    host.oci(&["state", &second.id]).run()?.exits(1)?;
    ensure!(exec(host, &first, "echo still")? == "still");
    first.delete_force()
}

/// A limit of one container holds for that one.
fn own_limits(host: &Host) -> Result<()> {
    let first = running(host, &Bundle::new(host, STAY)?)?;
    let eat = "head -c 100m /dev/zero | tail";
    let bundle = member(host, &first, &["network"], &["sh", "-c", eat])?.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
        spec["linux"]["resources"]["pids"] = json!({"limit": 20});
    })?;
    let greedy = Container::run(host, &bundle)?;
    ensure!(greedy.wait(SOON)?.shell() != 0);
    greedy.delete()?;
    if host.runtime.is_vm() {
        warned_of_the_size(host, &first)?;
    }
    ensure!(exec(host, &first, "echo alive")? == "alive");
    first.delete_force()
}

/// The first container has made the machine, which is too small for the next.
fn warned_of_the_size(host: &Host, first: &Container<'_>) -> Result<()> {
    let bundle = member(host, first, &["network"], &["true"])?.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 1_i64 << 30});
    })?;
    Container::run(host, &bundle)?.end(0)?;
    let directory = host.runtime.default_root().join(&first.id);
    let log = std::fs::read_to_string(directory.join("sandbox/monitor.log"))?;
    contains(&log, "exceed its machine")
}

/// Who joins a container with a user namespace joins that as well.
fn user_namespaces(host: &Host) -> Result<()> {
    let mapped = |spec: &mut Value, path: Option<String>| {
        let mapping = json!([{"containerID": 0, "hostID": 0, "size": 70_000}]);
        // As clients do, also with the path of another.
        spec["linux"]["uidMappings"] = mapping.clone();
        spec["linux"]["gidMappings"] = mapping;
        let mut namespace = json!({"type": "user"});
        if let Some(path) = path {
            namespace["path"] = json!(path);
        }
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.push(namespace);
        }
    };
    let look = [
        "sh",
        "-c",
        "hostname; awk '{ print $3 }' /proc/self/uid_map; ls /dev/mqueue",
    ];
    let shared = ["network", "ipc", "uts"];
    let first = Bundle::new(host, STAY)?.edit(|spec| mapped(spec, None))?;
    let first = running(host, &first)?;
    exec(host, &first, "touch /dev/mqueue/letter")?;
    let user = format!("/proc/{}/ns/user", first.pid);
    let member = member(host, &first, &shared, &look)?.edit(|spec| mapped(spec, Some(user)))?;
    let told = Container::run(host, &member)?.end(0)?;
    ensure!(told == "fort\n70000\nletter\n", "{told}");
    first.delete_force()
}

/// Hooks are told the process of their container, which is in the network.
fn hooks_of_a_member(host: &Host) -> Result<()> {
    let first = running(host, &Bundle::new(host, STAY)?)?;
    let file = host.dir.join("told");
    let hook = format!(
        "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/') && \
         echo $1 $pid $(readlink /proc/$pid/ns/net) >> {}",
        file.display()
    );
    let bundle = member(host, &first, &["network"], &["true"])?.edit(|spec| {
        let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
        let hook = |name: &str| {
            json!([{"path": "/bin/sh", "args": ["sh", "-c", hook, "sh", name], "env": [path]}])
        };
        spec["hooks"] = json!({"prestart": hook("prestart"), "poststop": hook("poststop")});
    })?;
    let second = Container::run(host, &bundle)?;
    let pid = second.pid;
    second.end(0)?;
    let told = std::fs::read_to_string(&file)?;
    let network = std::fs::read_link(format!("/proc/{}/ns/net", first.pid))?;
    let expected = format!("prestart {pid} {}", network.display());
    ensure!(told.lines().next() == Some(expected.as_str()), "{told}");
    ensure!(told.lines().count() == 2, "{told}");
    std::fs::remove_file(file)?;
    first.delete_force()
}

/// Namespaces that cannot be had are refused in one line, and nothing is left.
fn what_cannot_be(host: &Host) -> Result<()> {
    let refused = |bundle: &Bundle, reason: &str| -> Result<()> {
        let refused = create_command(host, bundle, &host.new_id()).run()?;
        contains(&one_clear_line(&refused.exits(1)?)?, reason)
    };
    let first = running(host, &Bundle::new(host, STAY)?)?;
    let other = running(host, &Bundle::new(host, STAY)?)?;
    for kind in ["ipc", "uts", "pid"] {
        let alone = member(host, &first, &[kind], STAY)?;
        refused(
            &alone,
            &format!("share that as well (--network container:{})", first.id),
        )?;
    }
    let both = member(host, &first, &["network"], STAY)?;
    let both = both.edit(|spec| join(spec, other.pid, &["ipc"]))?;
    refused(&both, "are in different virtual machines")?;
    let foreign = Bundle::new(host, STAY)?.edit(|spec| {
        join(spec, std::process::id() as i32, &["ipc"]);
    })?;
    refused(
        &foreign,
        "not a namespace of a running container of Casemate",
    )?;
    let mut stranger = host
        .command("unshare")
        .args(["--net", "sleep", "1000"])
        .start()?;
    let pid = stranger.pid;
    until_true("a process in a network of its own", SOON, || {
        let of = |pid: String| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        Ok(of(pid.to_string())? != of("self".to_owned())?)
    })?;
    let taken = Bundle::new(host, STAY)?.edit(|spec| join(spec, pid, &["network"]))?;
    refused(
        &taken,
        &format!("process {pid} is no running container of Casemate"),
    )?;
    stranger.signal(nix::sys::signal::Signal::SIGKILL)?;
    stranger.output_ended()?;
    stranger.exit()?;
    let (gone, pid) = (member(host, &other, &["network", "ipc"], STAY)?, other.pid);
    other.delete_force()?;
    refused(&gone, &format!("/proc/{pid}/ns/net"))?;
    ensure!(first.status()? == "running");
    first.delete_force()
}
