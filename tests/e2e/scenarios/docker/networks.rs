//! Networks that users make: containers that find each other, several networks
//! at once, networks that come and go while a container runs.

use anyhow::{Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Docker};

use super::network::{address, no_interfaces, reaches, serve};
use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![
        by_address,
        by_name,
        names_of_the_world,
        two_networks,
        connect_and_disconnect,
    ]
}

fn create(docker: &Docker<'_>, arguments: &[&str]) -> Result<()> {
    docker.does([&["network", "create"], arguments].concat())?;
    Ok(())
}

fn remove(docker: &Docker<'_>, networks: &[&str]) -> Result<()> {
    docker.does([&["network", "rm"], networks].concat())?;
    Ok(())
}

/// Two containers on one network with both families.
fn by_address(docker: &Docker<'_>) -> Result<()> {
    create(
        docker,
        &[
            "--ipv6",
            "--subnet=10.9.0.0/24",
            "--subnet=fd00:9::/64",
            "yard",
        ],
    )?;
    let first = [
        "--name=first",
        "--network=yard",
        "--ip=10.9.0.7",
        "--ip6=fd00:9::7",
    ];
    serve(
        docker,
        &[&first[..], &["--mac-address=02:11:22:33:44:55"]].concat(),
        "first",
    )?;
    serve(docker, &["--name=second", "--network=yard"], "second")?;
    let second = address(docker, "second", "yard")?;
    reaches(docker, "second", "10.9.0.7", "first")?;
    reaches(docker, "second", "[fd00:9::7]", "first")?;
    reaches(docker, "first", &second, "second")?;
    let script = "cat /sys/class/net/eth0/address; ip -6 -o addr show eth0 | grep -c fd00:9::7/64; \
                  ip -6 route | grep -c '^default'";
    let seen = docker.does(["exec", "first", "sh", "-c", script])?;
    ensure!(seen.text() == "02:11:22:33:44:55\n1\n1", "{seen}");
    docker.remove(&["first", "second"])?;
    remove(docker, &["yard"])?;
    no_interfaces(docker)
}

/// Containers call each other by name and by alias, also those that come later.
fn by_name(docker: &Docker<'_>) -> Result<()> {
    create(docker, &["yard"])?;
    serve(
        docker,
        &["--name=web", "--network=yard", "--network-alias=site"],
        "web",
    )?;
    serve(docker, &["--name=client", "--network=yard"], "client")?;
    reaches(docker, "client", "web", "web")?;
    reaches(docker, "client", "site", "web")?;
    reaches(docker, "web", "client", "client")?;
    serve(docker, &["--name=late", "--network=yard"], "late")?;
    reaches(docker, "web", "late", "late")?;
    reaches(docker, "late", "site", "web")?;
    docker.remove(&["late"])?;
    let gone = docker.command(["exec", "web", "nslookup", "late"]).run()?;
    ensure!(gone.exit.shell() != 0, "{gone}");
    docker.remove(&["web", "client"])?;
    remove(docker, &["yard"])
}

/// A name server that has an answer to every question for an IPv4 address
/// (RFC 1035, 4.1).
const NAME_SERVER: &str = r#"
    my $server = IO::Socket::INET->new(LocalPort => 53, Proto => "udp") or die $@;
    $| = 1;
    print "ready\n";
    while ($server->recv(my $question, 512)) {
        my $address = substr($question, -4) eq "\0\1\0\1";
        my $counts = pack("n*", 1, $address ? 1 : 0, 0, 0);
        my $answer = "\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\7";
        $server->send(substr($question, 0, 2) . "\x81\x80$counts" . substr($question, 12)
            . ($address ? $answer : ""));
    }
"#;

/// What the engine's name server does not know it asks another one, over the
/// container's own network.
fn names_of_the_world(docker: &Docker<'_>) -> Result<()> {
    create(docker, &["--subnet=10.9.0.0/24", "yard"])?;
    let world = docker.beside("perl")?;
    let world = world
        .args(["-MIO::Socket::INET", "-e", NAME_SERVER])
        .start()?;
    until_true(
        "the name server",
        SOON,
        || Ok(world.written() == b"ready\n"),
    )?;
    let flags = ["--dns=10.9.0.1", "--network=yard", "--name=asker"];
    serve(docker, &flags, "asker")?;
    for name in ["one.example", "two.example"] {
        let told = docker.does(["exec", "asker", "nslookup", name])?;
        contains(&told.text(), "192.0.2.7")?;
    }
    world.signal(nix::sys::signal::Signal::SIGTERM)?;
    world.exit_within(SOON)?;
    docker.remove(&["asker"])?;
    remove(docker, &["yard"])
}

/// A container that is on two networks from its start.
fn two_networks(docker: &Docker<'_>) -> Result<()> {
    create(docker, &["--subnet=10.9.0.0/24", "yard"])?;
    create(docker, &["--subnet=10.8.0.0/24", "keep"])?;
    serve(
        docker,
        &["--name=guard", "--network=keep", "--ip=10.8.0.9"],
        "guard",
    )?;
    let both = [
        "create",
        "--name=both",
        "--network=yard",
        BUSYBOX,
        "sleep",
        "1000",
    ];
    docker.does(both)?;
    docker.does(["network", "connect", "--ip=10.8.0.5", "keep", "both"])?;
    docker.does(["start", "both"])?;
    let look = [
        "exec",
        "both",
        "sh",
        "-c",
        "ip -4 -o addr show | awk '{ print $4 }' | sort",
    ];
    let seen = docker.does(look)?;
    ensure!(
        seen.text() == "10.8.0.5/24\n10.9.0.2/24\n127.0.0.1/8",
        "{seen}"
    );
    reaches(docker, "both", "10.8.0.9", "guard")?;
    docker.remove(&["both", "guard"])?;
    remove(docker, &["yard", "keep"])?;
    no_interfaces(docker)
}

/// A running container gets a network, loses it, and loses its first one.
fn connect_and_disconnect(docker: &Docker<'_>) -> Result<()> {
    create(docker, &["--subnet=10.9.0.0/24", "yard"])?;
    serve(docker, &["--name=server", "--network=yard"], "server")?;
    let wait = ["--name=mover", BUSYBOX, "sleep", "1000"];
    docker.does([&["run", "--detach"][..], &wait].concat())?;
    let has = |address: &str, is_there: bool| {
        until_true(address, SOON, || {
            let seen = docker.does(["exec", "mover", "ip", "-4", "-o", "addr", "show"])?;
            Ok(seen.text().contains(address) == is_there)
        })
    };
    has("172.17.", true)?;
    for _ in 0..2 {
        docker.does(["network", "connect", "--ip=10.9.0.5", "yard", "mover"])?;
        has("10.9.0.5/24", true)?;
        let server = address(docker, "server", "yard")?;
        reaches(docker, "mover", &server, "server")?;
        // The engine names its name server to the container only now.
        reaches(docker, "mover", "server", "server")?;
        docker.does(["network", "disconnect", "yard", "mover"])?;
        has("10.9.0.5/24", false)?;
    }
    docker.does(["network", "disconnect", "bridge", "mover"])?;
    has("172.17.", false)?;
    let links = docker.does(["exec", "mover", "ls", "/sys/class/net"])?;
    ensure!(links.text() == "lo", "{links}");
    docker.does(["network", "connect", "yard", "mover"])?;
    has("10.9.0.", true)?;
    let inspected = docker.inspect("mover", "{{json .NetworkSettings.Networks}}")?;
    contains(&inspected, "yard")?;
    docker.remove(&["mover", "server"])?;
    remove(docker, &["yard"])?;
    no_interfaces(docker)
}
