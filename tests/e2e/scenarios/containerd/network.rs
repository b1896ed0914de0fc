//! Networks that the client makes by CNI plugins.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use casemate_e2e::wait::until_true;
use casemate_e2e::{Containerd, Skip};

use super::{Body, SOON, bodies};

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![bridge]
}

/// Two containers and the host's side of their bridge reach each other.
fn bridge(containerd: &Containerd<'_>) -> Result<()> {
    if !Path::new("/usr/lib/cni/bridge").exists() {
        return Err(Skip("containernetworking-plugins is not installed".to_owned()).into());
    }
    let ctr = containerd.ctr();
    let server = "while :; do echo $((40+2)) | nc -l -p 80; done";
    let id = ctr.run_detached(&["--cni"], &["sh", "-c", server])?;
    let shown = ctr.exec(&id, &[], &["ip", "-4", "-o", "addr", "show", "eth0"]);
    let shown = shown.run()?.ok()?.text();
    let mut words = shown
        .split([' ', '/'])
        .filter(|word| word.starts_with("10.87.0."));
    let address = words.next().context(shown.clone())?;
    let ask = format!("ping -c 1 -W 5 10.87.0.1 >/dev/null && nc {address} 80");
    let asked = ctr.run(&["--rm", "--cni"], &["sh", "-c", &ask]);
    let asked = asked.run()?.ok()?;
    ensure!(asked.text() == "42", "{asked}");
    let ask = format!("cat </dev/tcp/{address}/80");
    let asked = containerd.beside("bash").args(["-c", &ask]).run()?.ok()?;
    ensure!(asked.text() == "42", "{asked}");
    ctr.remove(&id)?;
    until_true("no interface of it", SOON, || {
        let links = containerd.beside("ip").args(["-o", "link"]).run()?.ok()?;
        Ok(!links.text().contains("veth"))
    })
}
