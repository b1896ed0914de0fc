//! What a network through the virtual machine costs: a TCP stream each way and round trips
//! between the host and a container, with Casemate beside bare QEMU that has a tap on the same
//! bridge, and beside runc. All in one go, taking turns.

mod bare;
mod bridge;
mod client;
mod tools;

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use self::bare::Guest;
use self::bridge::{Bridge, Place};
use self::client::Client;
use self::tools::Tools;
use crate::bundle::Bundle;
use crate::machine;
use crate::options::{Name, Network};
use crate::report::{Report, Row, Table};
use crate::runtime::{Found, Running, Runtime};
use crate::turns::progress;
use crate::{Samples, Subject};

/// Runs of each unless the command line says otherwise.
const RUNS: usize = 5;

/// The host's side of the addresses; the others follow.
const NETWORK: [u8; 3] = [10, 88, 0];

/// Measures everyone from the host, in turns.
pub(crate) fn measure(subject: &Subject, options: &Network) -> Result<Report> {
    ensure!(
        options.common.rootfs.is_none(),
        "--rootfs: containers of this measurement have a root file system with iperf3, which \
         is made of the host's programs"
    );
    let folder = tempfile::tempdir()?;
    let bundle = Bundle::new(subject, folder.path(), None)?;
    let tools = Tools::find()?;
    tools.install(bundle.rootfs())?;
    let mut found = Found::look(subject, &options.common, &bundle, folder.path())?;
    // It has a network stack of its own, and refuses a namespace that it has not set up.
    found.leave_out(
        "runsc",
        "is called without the network namespace of the others",
    );
    let bridge = Bridge::new()?;
    let mut guest = None;
    let mut contenders = Vec::new();
    let mut addresses =
        (2..).map(|last| Ipv4Addr::from([NETWORK[0], NETWORK[1], NETWORK[2], last]));
    let mut next = || addresses.next().context("no address is left");
    if options.common.wants(Name::Qemu) {
        match machine::missing(subject) {
            None => {
                let address = next()?;
                guest = Some(Guest::start(
                    subject,
                    &tools,
                    &bridge,
                    address,
                    folder.path(),
                )?);
                contenders.push(Contender::new("bare QEMU, tap on the bridge", address));
            }
            Some(reason) => found.left_out.push(("bare QEMU".to_owned(), reason)),
        }
    }
    let mut containers = Vec::new();
    for runtime in &found.runtimes {
        let address = next()?;
        containers.push(Container::start(runtime, &bundle, &bridge, address)?);
        contenders.push(Contender::new(runtime.name(), address));
    }
    let client = Client::new(&tools, options.seconds, options.pings);
    for contender in &contenders {
        client
            .wait_for(contender.address)
            .with_context(|| contender.name.clone())?;
    }
    let runs = options.common.runs_or(RUNS);
    for run in 1..=runs {
        for contender in &mut contenders {
            contender.measure(&client)?;
        }
        progress("network", run, runs)?;
    }
    drop((guest, containers));
    Ok(Report {
        measurement: "network",
        tables: tables(&contenders),
        left_out: found.left_out,
    })
}

/// A container whose network is a place at the bridge, and which serves the measurements.
struct Container {
    _running: Running,
    _place: Place,
}

impl Container {
    fn start(
        runtime: &Runtime,
        bundle: &Bundle,
        bridge: &Bridge,
        address: Ipv4Addr,
    ) -> Result<Self> {
        let name = format!("c{}", address.octets()[3]);
        let place = bridge.connect(&name, address)?;
        let copy = bundle.copy(&runtime.root().with_extension("bundle"))?;
        copy.edit(|spec| join(spec, &place.path()))?;
        Ok(Self {
            _running: runtime.run_detached(&copy, "bench")?,
            _place: place,
        })
    }
}

/// Puts the container into a network namespace, where it serves, and gives iperf3 its folder
/// for what it sends.
fn join(spec: &mut Value, namespace: &Path) {
    spec["process"]["args"] = json!([tools::IPERF, "--server"]);
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    for entry in namespaces.into_iter().flatten() {
        if entry["type"] == "network" {
            entry["path"] = json!(namespace);
        }
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }));
    }
}

/// What is measured of one, round after round.
struct Contender {
    name: String,
    address: Ipv4Addr,
    /// Gigabits a second.
    to_container: Vec<f64>,
    to_host: Vec<f64>,
    /// Milliseconds.
    round_trips: Vec<f64>,
}

impl Contender {
    fn new(name: &str, address: Ipv4Addr) -> Self {
        Self {
            name: name.to_owned(),
            address,
            to_container: Vec::new(),
            to_host: Vec::new(),
            round_trips: Vec::new(),
        }
    }

    fn measure(&mut self, client: &Client<'_>) -> Result<()> {
        let mut all = || -> Result<()> {
            self.to_container.push(client.send_to(self.address)?);
            self.to_host.push(client.receive_from(self.address)?);
            self.round_trips.extend(client.ping(self.address)?);
            Ok(())
        };
        all().with_context(|| self.name.clone())
    }
}

type Column = fn(&Contender) -> &Vec<f64>;

fn tables(contenders: &[Contender]) -> Vec<Table> {
    let columns: [(&str, &'static str, Column); 3] = [
        ("TCP, host to container", "Gbit/s", |one| &one.to_container),
        ("TCP, container to host", "Gbit/s", |one| &one.to_host),
        ("round trip", "ms", |one| &one.round_trips),
    ];
    let table = |(title, unit, column): (&str, &'static str, Column)| {
        let rows = contenders.iter().filter_map(|contender| {
            Some(Row {
                name: contender.name.clone(),
                samples: Samples::new(column(contender).clone())?,
            })
        });
        Table::new(title, unit, rows.collect())
    };
    columns.into_iter().map(table).collect()
}
