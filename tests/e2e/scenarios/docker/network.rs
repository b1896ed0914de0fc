//! The networks that every engine has: the bridge with its ports, none, and
//! that of another container.

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Docker};

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![bridge, none_and_host, failed_starts, of_another]
}

pub(super) fn only_vm() -> (&'static str, Body, &'static str) {
    let why = "containers of one kernel can have any number of networks";
    ("too_many_networks", too_many_networks, why)
}

/// Starts a web server that says a word, and gives the container's id.
pub(super) fn serve(docker: &Docker<'_>, flags: &[&str], word: &str) -> Result<String> {
    let script =
        format!("mkdir -p /www && echo {word} >/www/index.html && exec httpd -f -p 80 -h /www");
    let run = [&["run", "--detach"], flags, &[BUSYBOX, "sh", "-c", &script]].concat();
    Ok(docker.does(run)?.text())
}

/// Demands that a server says the word to a container.
pub(super) fn reaches(docker: &Docker<'_>, from: &str, server: &str, word: &str) -> Result<()> {
    let address = format!("http://{server}/");
    let mut last = None;
    let reached = until_true("the server's answer", SOON, || {
        let get = [
            "exec", from, "timeout", "5", "wget", "-q", "-O", "-", &address,
        ];
        let get = docker.command(get).run()?;
        let answered = get.text() == word;
        last = Some(get);
        Ok(answered)
    });
    let last = last.map(|get| get.to_string()).unwrap_or_default();
    reached.with_context(|| format!("{from} asks {address}: {last}"))
}

pub(super) fn address(docker: &Docker<'_>, container: &str, network: &str) -> Result<String> {
    let template = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    docker.inspect(container, &template)
}

/// A published port, the gateway, another container; once more after a restart.
fn bridge(docker: &Docker<'_>) -> Result<()> {
    let server = serve(
        docker,
        &["--publish=127.0.0.1:8080:80", "--publish=81:80/tcp"],
        "served",
    )?;
    let is_served = || {
        for address in ["127.0.0.1:8080", "127.0.0.1:81"] {
            until_true(address, SOON, || {
                Ok(docker.fetch(address).is_ok_and(|word| word == "served"))
            })?;
        }
        Ok::<(), anyhow::Error>(())
    };
    is_served()?;
    contains(
        &docker.does(["port", &server])?.text(),
        "80/tcp -> 127.0.0.1:8080",
    )?;
    let server_address = address(docker, &server, "bridge")?;
    let script = format!(
        "ip -4 -o address show eth0 | grep -c 172.17.0.3/16; ip route | grep -c '^default via 172.17.0.1'; \
         wget -q -O - http://{server_address}/; ping -c 1 -W 5 172.17.0.1 >/dev/null && echo gateway; \
         ls /sys/class/net | grep -c eth"
    );
    let client = docker.does(["run", "--rm", BUSYBOX, "sh", "-c", &script])?;
    ensure!(client.text() == "1\n1\nserved\ngateway\n1", "{client}");
    docker.does(["restart", "--time=0", &server])?;
    is_served()?;
    docker.remove(&[&server])?;
    ensure!(
        docker.fetch("127.0.0.1:8080").is_err(),
        "the port is still open"
    );
    no_interfaces(docker)
}

/// What is of the host stays there, and it is said: its network and other namespaces.
fn none_and_host(docker: &Docker<'_>) -> Result<()> {
    let run = docker
        .run(["--rm", BUSYBOX, "ls", "/sys/class/net"])
        .run()?
        .ok()?;
    ensure!(run.text() == "lo", "{run}");
    for (flag, word) in [
        ("--network=host", "network"),
        ("--pid=host", "pid"),
        ("--ipc=host", "ipc"),
        ("--uts=host", "uts"),
    ] {
        let run = docker.command(["run", "--rm", flag, BUSYBOX, "true"]);
        let run = run.run()?;
        if docker.host.runtime.is_vm() {
            ensure!(run.exit.shell() == 125, "{run}");
            contains(&run.errors(), word)?;
        } else {
            run.ok()?;
        }
    }
    no_interfaces(docker)
}

/// Whatever a start fails at, its network is taken down, and the next one works.
fn failed_starts(docker: &Docker<'_>) -> Result<()> {
    let port = "--publish=127.0.0.1:8080:80";
    let server = serve(docker, &[port], "first")?;
    let taken = ["run", "--rm", port, BUSYBOX, "true"];
    let refused = docker.command(taken).run()?.exits(125)?;
    contains(&refused.errors(), "port is already allocated")?;
    let missing = [
        "run",
        "--rm",
        "--publish=127.0.0.1:8081:80",
        BUSYBOX,
        "no-such-program",
    ];
    docker.command(missing).run()?.exits(127)?;
    let left = docker.does(["ps", "--all", "--quiet", "--no-trunc"])?;
    ensure!(left.text() == server, "{left}");
    docker.remove(&[&server])?;
    no_interfaces(docker)?;
    let again = serve(docker, &[port, "--publish=127.0.0.1:8081:80"], "second")?;
    until_true("the second server", SOON, || {
        Ok(docker
            .fetch("127.0.0.1:8081")
            .is_ok_and(|word| word == "second"))
    })?;
    docker.remove(&[&again])
}

/// Demands that no container has left its side of a cable.
pub(super) fn no_interfaces(docker: &Docker<'_>) -> Result<()> {
    until_true("the interfaces of containers to go", SOON, || {
        let left = docker
            .beside("ip")?
            .args(["-o", "link", "show", "type", "veth"]);
        Ok(left.run()?.ok()?.text().is_empty())
    })
}

/// `--network`, `--ipc` and `--pid container:…`.
fn of_another(docker: &Docker<'_>) -> Result<()> {
    for network in ["bridge", "none"] {
        let network = format!("--network={network}");
        let first = ["--name=first", "--ipc=shareable", &network];
        serve(docker, &first, "beside")?;
        let look = "until wget -q -O - http://127.0.0.1/; do sleep 0.1; done 2>/dev/null; \
            ls /sys/class/net | grep -c eth0; ps -o comm | grep -c httpd; \
            touch /dev/mqueue/x /dev/shm/y";
        let join = ["network", "ipc", "pid"].map(|kind| format!("--{kind}=container:first"));
        let second = docker.command(["run", "--rm"]).args(&join);
        let told = second.args([BUSYBOX, "sh", "-c", look]).run()?.ok()?;
        let cards = u8::from(network.ends_with("bridge"));
        ensure!(told.text() == format!("beside\n{cards}\n1"), "{told}");
        let left = docker.does(["exec", "first", "ls", "/dev/mqueue", "/dev/shm"])?;
        ensure!(
            left.text().contains('x') && left.text().contains('y'),
            "{left}"
        );
        // The first may go first.
        let stay = ["--detach", "--name=second", "--network=container:first"];
        docker.does([&["run"], &stay[..], &[BUSYBOX, "sleep", "1000"]].concat())?;
        docker.remove(&["first"])?;
        docker.does(["exec", "second", "true"])?;
        docker.remove(&["second"])?;
    }
    no_interfaces(docker)
}

fn too_many_networks(docker: &Docker<'_>) -> Result<()> {
    // One more than the machine has slots for devices.
    let many = ["create", "--name=many", BUSYBOX, "true"];
    docker.does(many)?;
    let networks = ["one", "two", "three", "four"];
    for network in networks {
        docker.does(["network", "create", network])?;
        docker.does(["network", "connect", network, "many"])?;
    }
    let refused = docker.command(["start", "many"]).run()?.exits(1)?;
    contains(&refused.errors(), "machine.hotplug_slots")?;
    no_interfaces(docker)?;
    docker.does(["network", "disconnect", "four", "many"])?;
    docker.does(["start", "--attach", "many"])?;
    docker.remove(&["many"])?;
    docker.does([&["network", "rm"][..], &networks].concat())?;
    no_interfaces(docker)
}
