//! Networks as podman sets them up, and namespaces that the caller brings.
//!
//! A scenario's machine is a network namespace of its own: its bridges, rules
//! and name servers are out of the way of others and end with it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::container::create_command;
use casemate_e2e::expect::{contains, one_clear_line, same};
use casemate_e2e::wait::{until, until_true};
use casemate_e2e::{
    BUSYBOX, Bundle, Command, Container, Host, Podman, Scenario, processes, scenarios,
};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

pub(crate) fn scenarios() -> Vec<Scenario> {
    const VM: &str = "runc's containers use the namespace itself";
    let mut all = scenarios![
        same_sight,
        container_reaches_the_host,
        published_port,
        by_name,
        ipv6,
        two_networks,
        none,
        start_again,
        by_hook,
        before_start,
        while_running,
        made_slowly,
        macvlan,
        namespace_of_another,
    ];
    let only_vm = scenarios![
        too_many,
        stacked,
        monitor_killed,
        nothing_is_left_in_a_namespace,
    ];
    all.extend(only_vm.into_iter().map(|one| one.only_vm(VM)));
    all
}

const SOON: Duration = Duration::from_secs(20);

/// Leaves the machine's network for one of the scenario's own.
fn isolate(host: &Host) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    ip(host, "link set lo up")
}

fn ip(host: &Host, line: &str) -> Result<()> {
    host.command("ip").args(line.split(' ')).run()?.ok()?;
    Ok(())
}

/// `podman run` with the network that the flags ask for.
fn run<'h>(host: &Host, podman: &Podman<'h>, flags: &[&str]) -> Result<Command<'h>> {
    let parent = format!("--cgroup-parent=/{}", host.cgroup);
    podman.command([&["run", &parent], flags].concat())
}

fn network(podman: &Podman<'_>, arguments: &[&str]) -> Result<()> {
    podman
        .command([&["network", "create"], arguments].concat())?
        .run()?
        .ok()?;
    Ok(())
}

fn remove(podman: &Podman<'_>, container: &str) -> Result<()> {
    podman
        .command(["rm", "--force", "--time=0", container])?
        .run()?
        .ok()?;
    Ok(())
}

/// What a container finds configured is what it would find without a VM.
fn same_sight(host: &Host) -> Result<()> {
    isolate(host)?;
    const LOOK: &str = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; \
        until ip addr show dev eth0 | grep -q 'inet6 fe80'; do sleep 0.1; done; \
        ip addr show dev eth0 | awk '/inet/ { print $1, $2, $3, $4 }' | sed 's/ tentative//; s/ link$//'; \
        ip route; ip -6 route show dev eth0 | awk '{ print $1 }' | sort; ls /sys/class/net";
    let look = |podman: &Podman<'_>| -> Result<String> {
        let flags = [
            "--rm",
            "--network=podman",
            "--ip=10.88.0.77",
            "--mac-address=02:11:22:33:44:55",
            BUSYBOX,
            "sh",
            "-c",
            LOOK,
        ];
        Ok(run(host, podman, &flags)?.run()?.ok()?.text())
    };
    let reference = look(&Podman::with(host, host.runc()?)?)?;
    let ours = look(&Podman::new(host)?)?;
    for expected in [
        "02:11:22:33:44:55",
        "10.88.0.77/16",
        "default via 10.88.0.1",
    ] {
        contains(&ours, expected)?;
    }
    same(&ours, &reference)
}

/// A container reaches a server on the host, and its words come back.
fn container_reaches_the_host(host: &Host) -> Result<()> {
    isolate(host)?;
    let server = TcpListener::bind("0.0.0.0:7000")?;
    let answer = thread::spawn(move || -> Result<String> {
        let (mut connection, _) = server.accept()?;
        connection.write_all(b"from the host\n")?;
        let mut heard = String::new();
        connection.read_to_string(&mut heard)?;
        Ok(heard)
    });
    let podman = Podman::new(host)?;
    let script = "ping -c 1 -W 5 10.88.0.1 >&2 && echo from the container | nc 10.88.0.1 7000";
    let flags = [
        "--rm",
        "--network=bridge",
        "--cap-add=NET_RAW",
        BUSYBOX,
        "sh",
        "-c",
        script,
    ];
    let told = run(host, &podman, &flags)?.run()?.ok()?;
    ensure!(told.text() == "from the host", "{told}");
    let heard = answer.join().expect("no panic")?;
    ensure!(heard == "from the container\n", "{heard}");
    Ok(())
}

/// A published port leads into the container; what comes is whole.
fn published_port(host: &Host) -> Result<()> {
    isolate(host)?;
    let podman = Podman::new(host)?;
    let serve = "while :; do seq 1 200000 | nc -l -p 80; done";
    let flags = [
        "--detach",
        "--network=bridge",
        "-p",
        "18080:80",
        BUSYBOX,
        "sh",
        "-c",
        serve,
    ];
    let id = run(host, &podman, &flags)?.run()?.ok()?.text();
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    for address in ["10.88.0.1:18080", "127.0.0.1:18080"] {
        let read = until(address, SOON, || Ok(read_all(address).ok()))?;
        ensure!(
            read == expected,
            "{address}: {} of {} bytes",
            read.len(),
            expected.len()
        );
    }
    remove(&podman, &id)
}

fn read_all(address: &str) -> Result<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(SOON))?;
    let mut text = String::new();
    connection.read_to_string(&mut text)?;
    ensure!(!text.is_empty());
    Ok(text)
}

/// Containers of one network find each other by their names.
fn by_name(host: &Host) -> Result<()> {
    isolate(host)?;
    let podman = Podman::new(host)?;
    network(&podman, &["yard"])?;
    let serve = "while :; do echo hello from alpha | nc -l -p 80; done";
    let flags = [
        "--detach",
        "--name=alpha",
        "--network=yard",
        BUSYBOX,
        "sh",
        "-c",
        serve,
    ];
    run(host, &podman, &flags)?.run()?.ok()?;
    let ask = "until nc -w 5 alpha 80 2>/dev/null | grep hello; do sleep 0.2; done";
    let flags = [
        "--rm",
        "--network=yard",
        BUSYBOX,
        "timeout",
        "30",
        "sh",
        "-c",
        ask,
    ];
    let told = run(host, &podman, &flags)?.run()?.ok()?;
    ensure!(told.text() == "hello from alpha", "{told}");
    remove(&podman, "alpha")
}

fn ipv6(host: &Host) -> Result<()> {
    isolate(host)?;
    let podman = Podman::new(host)?;
    network(
        &podman,
        &["--ipv6", "--subnet=fd00:5::/64", "--disable-dns", "six"],
    )?;
    let server = TcpListener::bind("[::]:7000")?;
    let answer = thread::spawn(move || -> Result<()> {
        let (mut connection, _) = server.accept()?;
        connection.write_all(b"over six\n")?;
        Ok(())
    });
    let ask = "ip -6 addr show dev eth0 | grep -c fd00:5:; ip -6 route | grep default | cut -d ' ' -f 3; \
        nc fd00:5::1 7000 </dev/null";
    let flags = [
        "--rm",
        "--network=six",
        BUSYBOX,
        "timeout",
        "30",
        "sh",
        "-c",
        ask,
    ];
    let told = run(host, &podman, &flags)?.run()?.ok()?;
    ensure!(told.text() == "1\nfd00:5::1\nover six", "{told}");
    answer.join().expect("no panic")
}

fn two_networks(host: &Host) -> Result<()> {
    isolate(host)?;
    let podman = Podman::new(host)?;
    network(&podman, &["--subnet=10.61.0.0/24", "--disable-dns", "one"])?;
    network(&podman, &["--subnet=10.62.0.0/24", "--disable-dns", "two"])?;
    let look = "ip -4 addr | awk '/inet 10/ { print $2 }' | cut -d. -f1-3 | sort; ls /sys/class/net; \
        for gateway in 10.61.0.1 10.62.0.1; do ping -c 1 -W 5 $gateway | grep -c 'bytes from'; done";
    let flags = [
        "--rm",
        "--network=one",
        "--network=two",
        "--cap-add=NET_RAW",
        BUSYBOX,
        "sh",
        "-c",
        look,
    ];
    let told = run(host, &podman, &flags)?.run()?.ok()?;
    ensure!(
        told.text() == "10.61.0\n10.62.0\neth0\neth1\nlo\n1\n1",
        "{told}"
    );
    Ok(())
}

fn none(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let flags = [
        "--rm",
        "--network=none",
        BUSYBOX,
        "sh",
        "-c",
        "ls /sys/class/net; ip route",
    ];
    let told = run(host, &podman, &flags)?.run()?.ok()?;
    ensure!(told.text() == "lo", "{told}");
    Ok(())
}

/// A container that is started again has a network again.
fn start_again(host: &Host) -> Result<()> {
    isolate(host)?;
    let podman = Podman::new(host)?;
    let script = "ip -4 addr show dev eth0 | grep -c inet";
    let flags = [
        "--name=twice",
        "--network=bridge",
        BUSYBOX,
        "sh",
        "-c",
        script,
    ];
    let first = run(host, &podman, &flags)?.run()?.ok()?;
    let second = podman
        .command(["start", "--attach", "twice"])?
        .run()?
        .ok()?;
    ensure!(
        first.text() == "1" && second.text() == "1",
        "{first}\n{second}"
    );
    remove(&podman, "twice")
}

/// Lets the container ping.
fn add_raw(spec: &mut serde_json::Value) {
    for set in ["bounding", "effective", "permitted"] {
        if let Some(list) = spec["process"]["capabilities"][set].as_array_mut() {
            list.push(json!("CAP_NET_RAW"));
        }
    }
}

/// A namespace made by ip(8), and a container in it.
struct Place<'h> {
    host: &'h Host,
    name: &'static str,
}

impl<'h> Place<'h> {
    fn new(host: &'h Host) -> Result<Place<'h>> {
        isolate(host)?;
        let place = Place { host, name: "yard" };
        ip(host, "netns add yard")?;
        place.ip("link set lo up")?;
        Ok(place)
    }

    fn ip(&self, line: &str) -> Result<()> {
        ip(self.host, &format!("-n {} {line}", self.name))
    }

    /// A pair with one end in the namespace, as `eth<n>` with 10.7.<n>.2, and
    /// the other here with 10.7.<n>.1.
    fn connect(&self, n: u8) -> Result<()> {
        let name = self.name;
        ip(
            self.host,
            &format!("link add host{n} type veth peer name eth{n} netns {name}"),
        )?;
        ip(self.host, &format!("addr add 10.7.{n}.1/24 dev host{n}"))?;
        ip(self.host, &format!("link set host{n} up"))?;
        self.ip(&format!("addr add 10.7.{n}.2/24 dev eth{n}"))?;
        self.ip(&format!("link set eth{n} up"))
    }

    fn bundle(&self, arguments: &[&str]) -> Result<Bundle> {
        let path = format!("/run/netns/{}", self.name);
        Bundle::new(self.host, arguments)?.edit(|spec| {
            for namespace in spec["linux"]["namespaces"]
                .as_array_mut()
                .into_iter()
                .flatten()
            {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(path);
                }
            }
            add_raw(spec);
        })
    }

    /// Taps and redirects that are in the namespace.
    fn traces(&self) -> Result<String> {
        let mut found = String::new();
        for (program, line) in [("ip", "-o link"), ("tc", "qdisc show ingress")] {
            let told = self
                .host
                .command(program)
                .args(["-n", self.name])
                .args(line.split(' '));
            for line in told.run()?.ok()?.text().lines() {
                if line.contains("cmtap") || line.contains("ingress") {
                    found = found + line + "\n";
                }
            }
        }
        Ok(found)
    }

    fn end(self) -> Result<()> {
        ip(self.host, &format!("netns del {}", self.name))
    }
}

/// As Docker did it before version 28: a hook finds the namespace by the process
/// in it.
fn by_hook(host: &Host) -> Result<()> {
    isolate(host)?;
    let hook = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/') && \
        ip link add host0 type veth peer name eth0 netns $pid && \
        ip addr add 10.7.0.1/24 dev host0 && ip link set host0 up && \
        inside() { nsenter --net --target $pid \"$@\"; } && \
        inside sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=1 && \
        inside ip addr add 10.7.0.2/24 dev eth0 && inside ip link set eth0 up";
    let script = "cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6; \
        ping -c 1 -W 5 10.7.0.1 | grep -c 'bytes from'";
    let bundle = Bundle::new(host, &["sh", "-c", script])?.edit(|spec| {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        spec["hooks"] = json!({"prestart": [
            {"path": "/bin/sh", "args": ["sh", "-ec", hook], "env": [path]},
        ]});
        add_raw(spec);
    })?;
    let told = Container::run(host, &bundle)?.end(0)?;
    ensure!(told == "1\n1\n", "{told}");
    Ok(())
}

/// As Docker does it since version 28: the container is there first.
fn before_start(host: &Host) -> Result<()> {
    let place = Place::new(host)?;
    let script = "ip -4 addr show dev eth0 | awk '/inet/ { print $2 }'; ip route | grep -c ^default; \
        ping -c 1 -W 5 10.7.0.1 | grep -c 'bytes from'";
    let bundle = place.bundle(&["sh", "-c", script])?;
    let container = Container::create(host, &bundle)?;
    place.connect(0)?;
    place.ip("route add default via 10.7.0.1")?;
    container.start()?;
    let told = container.end(0)?;
    ensure!(told == "10.7.0.2/24\n1\n1\n", "{told}");
    place.end()
}

/// Interfaces and addresses come, change and go while the container runs.
fn while_running(host: &Host) -> Result<()> {
    let place = Place::new(host)?;
    place.connect(0)?;
    let script = "while :; do echo $(ip -o -4 addr | awk '{ print $2 \"=\" $4 }') \
        $(ip route | awk '/^default/ { print $3 }'); sleep 0.1; done";
    let bundle = place.bundle(&["sh", "-c", script])?;
    let mut container = Container::run(host, &bundle)?;
    let mut sees = |parts: &[&str], not: &[&str]| -> Result<()> {
        until_true(&format!("{parts:?} without {not:?}"), SOON, || {
            let written = container.streams().written();
            let text = String::from_utf8_lossy(&written);
            let last = text.lines().last().unwrap_or_default();
            Ok(parts.iter().all(|part| last.contains(part))
                && !not.iter().any(|part| last.contains(part)))
        })
    };
    sees(&["eth0=10.7.0.2/24"], &["eth1"])?;
    place.connect(1)?;
    sees(&["eth0=10.7.0.2/24", "eth1=10.7.1.2/24"], &[])?;
    place.ip("addr add 10.7.9.2/24 dev eth1")?;
    place.ip("route add default via 10.7.9.1")?;
    sees(&["eth1=10.7.9.2/24", "10.7.9.1"], &[])?;
    place.ip("route del default")?;
    place.ip("addr del 10.7.9.2/24 dev eth1")?;
    sees(&["eth1=10.7.1.2/24"], &["10.7.9."])?;
    place.ip("link del eth1")?;
    sees(&["eth0=10.7.0.2/24"], &["eth1"])?;
    // The same name once more, as another interface.
    place.connect(1)?;
    sees(&["eth0=10.7.0.2/24", "eth1=10.7.1.2/24"], &[])?;
    container.delete_force()?;
    ensure!(place.traces()?.is_empty(), "{}", place.traces()?);
    place.end()
}

/// As Docker does it from version 28 on: an interface comes, gets its name, its
/// hardware address and its addresses, and is put up last.
fn made_slowly(host: &Host) -> Result<()> {
    const SLOW: Duration = Duration::from_millis(200);
    let place = Place::new(host)?;
    place.connect(0)?;
    let script = "while :; do for one in /sys/class/net/*; do \
        echo ${one##*/}=$(cat $one/address)=$(ip -o -4 addr show ${one##*/} | awk '{ print $4 }'); \
        done | xargs; sleep 0.1; done";
    let bundle = place.bundle(&["sh", "-c", script])?;
    let mut container = Container::run(host, &bundle)?;
    let mut sees = |part: &str| {
        until_true(part, SOON, || {
            let written = container.streams().written();
            let text = String::from_utf8_lossy(&written);
            Ok(text.lines().last().unwrap_or_default().contains(part))
        })
    };
    sees("=10.7.0.2/24")?;
    ip(
        host,
        "link add host1 type veth peer name veth1 netns yard address 02:00:00:00:00:01",
    )?;
    for step in [
        "link set veth1 name eth1",
        "link set eth1 address 02:00:00:00:00:02",
        "addr add 10.7.1.2/24 dev eth1",
        "link set eth1 up",
    ] {
        thread::sleep(SLOW);
        place.ip(step)?;
    }
    sees("eth1=02:00:00:00:00:02=10.7.1.2/24")?;
    // One that is there already becomes another card.
    place.ip("link set eth1 address 02:00:00:00:00:03")?;
    sees("eth1=02:00:00:00:00:03=10.7.1.2/24")?;
    // One that nobody puts up is there as well.
    ip(host, "link add host2 type veth peer name eth2 netns yard")?;
    sees("eth2=")?;
    container.delete_force()?;
    ensure!(place.traces()?.is_empty(), "{}", place.traces()?);
    place.end()
}

/// An interface on top of one of the host's, as `podman network create -d macvlan`
/// makes it. Two of one parent reach each other.
fn macvlan(host: &Host) -> Result<()> {
    let place = Place::new(host)?;
    ip(host, "link add parent0 type veth peer name parent1")?;
    for line in ["parent0", "parent1"] {
        ip(host, &format!("link set {line} up"))?;
    }
    ip(
        host,
        "link add link parent0 name here0 type macvlan mode bridge",
    )?;
    ip(host, "addr add 10.7.0.1/24 dev here0")?;
    ip(host, "link set here0 up")?;
    ip(
        host,
        "link add link parent0 name eth0 netns yard type macvlan mode bridge",
    )?;
    place.ip("addr add 10.7.0.2/24 dev eth0")?;
    place.ip("link set eth0 up")?;
    let bundle = place.bundle(&["ping", "-c", "1", "-W", "5", "10.7.0.1"])?;
    let told = Container::run(host, &bundle)?.end(0)?;
    contains(&told, "1 packets received")?;
    place.end()
}

/// Who names the same namespace has the same network, and it is nobody's when
/// all have gone.
fn namespace_of_another(host: &Host) -> Result<()> {
    let place = Place::new(host)?;
    place.connect(0)?;
    let first = Container::run(host, &place.bundle(&["sleep", "1000"])?)?;
    let script = "ip -4 addr show dev eth0 | awk '/inet/ { print $2 }'; \
        ping -c 1 -W 5 10.7.0.1 | grep -c 'bytes from'";
    let look = place.bundle(&["sh", "-c", script])?;
    let told = Container::run(host, &look)?.end(0)?;
    ensure!(told == "10.7.0.2/24\n1\n", "{told}");
    ensure!(first.status()? == "running");
    first.delete_force()?;
    ensure!(place.traces()?.is_empty(), "{}", place.traces()?);
    let told = Container::run(host, &look)?.end(0)?;
    ensure!(told == "10.7.0.2/24\n1\n", "{told}");
    place.end()
}

/// More interfaces than the machine has slots for.
fn too_many(host: &Host) -> Result<()> {
    let place = Place::new(host)?;
    for n in 0..5 {
        place.connect(n)?;
    }
    let bundle = place.bundle(&["true"])?;
    let refused = create_command(host, &bundle, &host.new_id())
        .run()?
        .exits(1)?;
    contains(&one_clear_line(&refused)?, "machine.hotplug_slots")?;
    ensure!(place.traces()?.is_empty(), "{}", place.traces()?);
    place.end()
}

/// What cannot be connected is named, with the reason.
fn stacked(host: &Host) -> Result<()> {
    let place = Place::new(host)?;
    place.connect(0)?;
    place.ip("link add link eth0 name over0 type macvlan")?;
    let bundle = place.bundle(&["true"])?;
    let refused = create_command(host, &bundle, &host.new_id())
        .run()?
        .exits(1)?;
    contains(
        &one_clear_line(&refused)?,
        "network interface over0: it is stacked",
    )?;
    place.end()
}

/// After a kill of the monitor, `delete` clears the namespace, which lives on.
fn monitor_killed(host: &Host) -> Result<()> {
    let place = Place::new(host)?;
    place.connect(0)?;
    let bundle = place.bundle(&["sleep", "1000"])?;
    let container = Container::run(host, &bundle)?;
    ensure!(place.traces()?.lines().count() >= 3, "{}", place.traces()?);
    let monitors = processes::ours()
        .into_iter()
        .filter(|one| one.has_word("monitor"));
    for monitor in monitors {
        monitor.kill()?;
    }
    container.wait(SOON)?;
    container.delete_force()?;
    ensure!(place.traces()?.is_empty(), "{}", place.traces()?);
    // The namespace can be used as before.
    let bundle = place.bundle(&["ping", "-c", "1", "-W", "5", "10.7.0.1"])?;
    Container::run(host, &bundle)?.end(0)?;
    place.end()
}

fn nothing_is_left_in_a_namespace(host: &Host) -> Result<()> {
    let place = Place::new(host)?;
    place.connect(0)?;
    place.connect(1)?;
    let bundle = place.bundle(&["true"])?;
    for _ in 0..3 {
        Container::run(host, &bundle)?.end(0)?;
        ensure!(place.traces()?.is_empty(), "{}", place.traces()?);
    }
    let open = fs::read_dir("/run/netns")?.count();
    ensure!(open == 1, "{open} namespaces");
    place.end()
}
