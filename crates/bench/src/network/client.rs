//! The host's side of the measurements.

use std::net::Ipv4Addr;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::tools::Tools;
use crate::command;

/// How long a machine may take to boot and to serve.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a server that is not ready is asked again.
const TRIES: u32 = 10;

pub(super) struct Client<'t> {
    tools: &'t Tools,
    seconds: u32,
    pings: u32,
}

impl<'t> Client<'t> {
    pub(super) fn new(tools: &'t Tools, seconds: u32, pings: u32) -> Self {
        Self {
            tools,
            seconds,
            pings,
        }
    }

    /// Returns when `address` serves. What it does for that has run once, and is no longer new
    /// to an emulated processor when it is measured.
    pub(super) fn wait_for(&self, address: Ipv4Addr) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let served = self
                .send_to(address)
                .and_then(|_| self.receive_from(address));
            match served {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(100)),
            }
        }
    }

    /// A stream from here; gigabits a second that arrived.
    pub(super) fn send_to(&self, address: Ipv4Addr) -> Result<f64> {
        self.stream(address, &[])
    }

    /// A stream to here.
    pub(super) fn receive_from(&self, address: Ipv4Addr) -> Result<f64> {
        self.stream(address, &["--reverse"])
    }

    /// Asks again where the server is not ready: between two streams it listens anew. One that
    /// has stopped answering ends the measurement.
    fn stream(&self, address: Ipv4Addr, direction: &[&str]) -> Result<f64> {
        let mut tries = 0..TRIES;
        loop {
            let report = self.report(address, direction)?;
            if report["error"].is_null() || tries.next().is_none() {
                return rate(&report);
            }
            sleep(Duration::from_millis(300));
        }
    }

    fn report(&self, address: Ipv4Addr, direction: &[&str]) -> Result<Value> {
        let limit = Duration::from_secs(u64::from(self.seconds)) + PATIENCE / 4;
        let mut line = self.tools.iperf(limit);
        line.args(["--client", &address.to_string(), "--json"])
            .args(["--connect-timeout", "1000"])
            .args(["--time", &self.seconds.to_string()])
            .args(direction);
        Ok(serde_json::from_str(&command::output(&mut line)?)?)
    }

    /// Milliseconds of each round trip.
    pub(super) fn ping(&self, address: Ipv4Addr) -> Result<Vec<f64>> {
        let mut line = Command::new(&self.tools.busybox);
        line.args(["ping", "-i", "0.02", "-c", &self.pings.to_string()])
            .arg(address.to_string());
        let text = command::output(&mut line)?;
        let trips: Vec<f64> = text.lines().filter_map(round_trip).collect();
        ensure!(
            trips.len() == self.pings as usize,
            "some of {} pings were not answered:\n{text}",
            self.pings
        );
        Ok(trips)
    }
}

/// What the receiver counted.
fn rate(report: &Value) -> Result<f64> {
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("iperf3 told no rate: {report}"))? / 1e9)
}

/// The time in a line such as `64 bytes from 10.88.0.2: seq=0 ttl=64 time=0.123 ms`.
fn round_trip(line: &str) -> Option<f64> {
    let (_, time) = line.split_once("time=")?;
    time.strip_suffix(" ms")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_ping() {
        let line = "64 bytes from 10.88.0.2: seq=0 ttl=64 time=0.123 ms";
        assert_eq!(round_trip(line), Some(0.123));
        assert_eq!(
            round_trip("PING 10.88.0.2 (10.88.0.2): 56 data bytes"),
            None
        );
    }

    #[test]
    fn the_rate_is_the_receivers() {
        let report = serde_json::json!({ "end": {
            "sum_sent": { "bits_per_second": 3e9 },
            "sum_received": { "bits_per_second": 2e9 },
        } });
        assert_eq!(rate(&report).unwrap(), 2.0);
        assert!(rate(&serde_json::json!({ "error": "refused" })).is_err());
    }
}
