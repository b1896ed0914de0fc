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
use super::bundle::Bundle;
use super::runtime::{Program, Running, Runtime};

/// Options of `cargo xtask bench network`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds, in each of which everyone is measured once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each stream
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Round trips of each in a round
    #[arg(long, default_value_t = 50)]
    pings: u32,
    #[command(flatten)]
    program: Program,
}

/// Where the three answer.
const BARE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
const CASEMATE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);
const RUNC: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 4);

/// Measures and prints a table.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds: at least one");
    let folder = tempfile::tempdir()?;
    // What packages are needed is fetched before the machine's network is left.
    let bundle = Bundle::new(folder.path())?;
    let tools = Tools::find()?;
    tools.install(&bundle.rootfs())?;
    let casemate = Runtime::casemate(&options.program.path()?, folder.path());
    let runc = Runtime::usable("runc", &bundle, folder.path())?;
    let bridge = Bridge::new()?;
    let _guest = Guest::start(&tools, &bridge, BARE, folder.path())?;
    let _in_casemate = Container::start(&casemate, &bundle, &bridge, CASEMATE)?;
    let _in_runc = Container::start(&runc, &bundle, &bridge, RUNC)?;
    let client = Client::new(&tools, options.seconds, options.pings);
    let mut contenders = [
        Contender::new("bare QEMU, tap on the bridge", BARE),
        Contender::new("casemate", CASEMATE),
        Contender::new("runc", RUNC),
    ];
    for contender in &contenders {
        client.wait_for(contender.address).context(contender.name)?;
    }
    for round in 1..=options.rounds {
        for contender in &mut contenders {
            contender.measure(&client)?;
        }
        eprint!("\rround {round} of {}", options.rounds);
    }
    eprintln!();
    print_table(&contenders);
    Ok(())
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
        let place = bridge.connect(runtime.name(), address)?;
        bundle.set_program(&["iperf3", "--server"])?;
        bundle.edit(|spec| join(spec, &place.path()))?;
        Ok(Self {
            _running: runtime.run_detached(bundle, &format!("bench-{}", runtime.name()))?,
            _place: place,
        })
    }
}

/// Puts the container into a network namespace, and gives iperf3 its folder for what it sends.
fn join(spec: &mut Value, namespace: &Path) {
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
    name: &'static str,
    address: Ipv4Addr,
    /// Gigabits a second.
    to_container: Vec<f64>,
    to_host: Vec<f64>,
    /// Milliseconds.
    round_trips: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, address: Ipv4Addr) -> Self {
        Self {
            name,
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
        all().context(self.name)
    }
}

fn print_table(contenders: &[Contender]) {
    let columns: [(&str, &str, Column); 3] = [
        ("TCP, host to container", "Gbit/s", |one| &one.to_container),
        ("TCP, container to host", "Gbit/s", |one| &one.to_host),
        ("round trip", "ms", |one| &one.round_trips),
    ];
    for (title, unit, column) in columns {
        let base = median(column(&contenders[0]));
        println!(
            "{:34} {:>9} {:>9} {:>9} {:>8}",
            format!("{title}, {unit}"),
            "median",
            "least",
            "most",
            "x bare"
        );
        for contender in contenders {
            let samples = sorted(column(contender));
            println!(
                "  {:32} {:>9.3} {:>9.3} {:>9.3} {:>8.2}",
                contender.name,
                median(&samples),
                samples[0],
                samples[samples.len() - 1],
                median(&samples) / base,
            );
        }
    }
}

type Column = fn(&Contender) -> &Vec<f64>;

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    samples
}

fn median(samples: &[f64]) -> f64 {
    let samples = sorted(samples);
    samples[samples.len() / 2]
}
