//! The networks of pods: addresses, ports, names.

use std::fs;

use anyhow::{Context, Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::cri::{Container, Cri, Pod};
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![pods_talk, published_port, port_forward, names]
}

/// The address of the bridge.
const GATEWAY: &str = "10.87.0.1";

/// Starts a web server that says a word.
fn serve<'p, 'c, 'h>(
    pod: &'p Pod<'c, 'h>,
    listen: &str,
    word: &str,
) -> Result<Container<'p, 'c, 'h>> {
    let script =
        format!("mkdir /www; echo {word} >/www/index.html; exec httpd -f -p {listen} -h /www");
    pod.container("server", &["sh", "-c", &script]).start()
}

/// Demands that a server says the word to a container.
fn reaches(from: &Container<'_, '_, '_>, server: &str, word: &str) -> Result<()> {
    let script = format!("timeout 5 wget -q -O - http://{server}/");
    let mut last = String::new();
    let reached = until_true("the server's answer", SOON, || {
        let asked = from.exec(&["sh", "-c", &script])?;
        last = format!("{asked:?}");
        Ok(asked.stdout.trim_end() == word)
    });
    reached.with_context(|| format!("{server}: {last}"))
}

/// Two pods on a bridge reach each other, and the host reaches both.
fn pods_talk(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let (one, two) = (cri.pod("one").run()?, cri.pod("two").run()?);
    serve(&one, "80", "first")?;
    serve(&two, "80", "second")?;
    let (from_one, from_two) = (one.idle("client").start()?, two.idle("client").start()?);
    let (first, second) = (one.address()?, two.address()?);
    ensure!(first != second && first.starts_with("10.87.0."));
    let shown = from_one.sh("ip -4 -o addr show eth0; ip route")?;
    contains(&shown, &format!(" {first}/24 "))?;
    contains(&shown, &format!("default via {GATEWAY} dev eth0"))?;
    reaches(&from_one, &second, "second")?;
    reaches(&from_two, &first, "first")?;
    // Within a pod.
    reaches(&from_one, "127.0.0.1", "first")?;
    ensure!(cri.fetch(&format!("{first}:80"))? == "first");
    let usage = one.stats()?;
    ensure!(usage.network.default_interface.name == "eth0", "{usage}");
    one.end()?;
    reaches(&from_two, "127.0.0.1", "second")?;
    two.end()
}

/// A port of the host leads to a port of the pod, as long as the pod is there.
fn published_port(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("published").publish(8080, 80).run()?;
    serve(&pod, "80", "word")?;
    let address = format!("{GATEWAY}:8080");
    until_true("the server's answer", SOON, || {
        Ok(cri.fetch(&address).is_ok_and(|answer| answer == "word"))
    })?;
    pod.end()?;
    ensure!(
        cri.fetch(&address).is_err(),
        "somebody answers at {address}"
    );
    Ok(())
}

/// To a port that is open to the pod alone.
fn port_forward(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("forward").run()?;
    let server = serve(&pod, "127.0.0.1:8080", "word")?;
    reaches(&server, "127.0.0.1:8080", "word")?;
    for _ in 0..3 {
        let answer = pod.forward(8080, "GET / HTTP/1.0\r\n\r\n")?;
        ensure!(answer.ends_with("\r\n\r\nword\n"), "{answer}");
    }
    let closed = pod
        .forward(8081, "")
        .err()
        .context("a refusal was expected")?;
    // Into a machine the connection is made before it is known that nobody is there.
    let refused = if cri.host.runtime.is_vm() {
        "reset"
    } else {
        "refused"
    };
    contains(&format!("{closed:#}"), refused)?;
    pod.end()
}

/// Name, name servers, and the names that the kubelet writes down.
fn names(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("names").dns(
        &["192.0.2.1", "192.0.2.2"],
        &["scenarios.svc.example", "svc.example"],
        &["ndots:5"],
    );
    let pod = pod.run()?;
    let hosts = cri.host.new_folder("hosts")?.join("hosts");
    fs::write(&hosts, "127.0.0.1\tlocalhost\n192.0.2.9\tneighbour\n")?;
    let main = pod.idle("main").mount(&hosts, "/etc/hosts").start()?;
    let resolver = main.sh("cat /etc/resolv.conf")?;
    let expected = "search scenarios.svc.example svc.example\n\
                    nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:5";
    ensure!(resolver == expected, "{resolver}");
    ensure!(main.sh("hostname; cat /etc/hostname")? == "names\nnames");
    contains(&main.sh("ping -c 1 -W 1 neighbour; true")?, "192.0.2.9")?;
    pod.end()
}
