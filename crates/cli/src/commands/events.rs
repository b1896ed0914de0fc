//! `events`: what a container uses, as runc prints it, one JSON object a line.
//! The figures are the guest's own.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use casemate_sandbox::policy::{Operation, allow};
use containerd_shim_protos::cgroups_v2::metrics::{IOEntry, Metrics};
use serde_json::{Map, Value, json};

use crate::{
    arguments::{Events, Global},
    client::{Monitor, Place, block_on},
};

/// # Errors
/// When the container does not run.
pub fn run(global: &Global, arguments: &Events) -> Result<ExitCode> {
    let place = Place::of(global, &arguments.id)?;
    allow(Operation::Signal, place.state()?.status)?;
    block_on(async {
        let monitor = Monitor::connect(&place)?;
        let first = monitor.stats().await?;
        print(&event(&place, "stats", Some(figures(&first))))?;
        if arguments.stats {
            return Ok(());
        }
        follow(&place, &monitor, arguments.interval, &first).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints until the container has ended.
async fn follow(
    place: &Place,
    monitor: &Monitor,
    interval: Duration,
    first: &Metrics,
) -> Result<()> {
    let mut killed = first.memory_events.oom_kill;
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    ticks.tick().await;
    let ended = monitor.wait();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            _ = &mut ended => return Ok(()),
            _ = ticks.tick() => {}
        }
        // One that has just ended has no figures.
        let Ok(metrics) = monitor.stats().await else {
            continue;
        };
        if metrics.memory_events.oom_kill > killed {
            killed = metrics.memory_events.oom_kill;
            print(&event(place, "oom", None))?;
        }
        print(&event(place, "stats", Some(figures(&metrics))))?;
    }
}

fn event(place: &Place, kind: &str, data: Option<Value>) -> Value {
    let mut event = json!({ "type": kind, "id": place.id.as_str() });
    if let Some(data) = data {
        event["data"] = data;
    }
    event
}

/// A reader that has gone ends us, as it would by SIGPIPE.
fn print(event: &Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{event}")?;
    Ok(out.flush()?)
}

/// The object that runc has under "data".
fn figures(metrics: &Metrics) -> Value {
    let (cpu, memory) = (&metrics.cpu, &metrics.memory);
    json!({
        "cpu": {
            "usage": {
                "total": cpu.usage_usec * 1000,
                "kernel": cpu.system_usec * 1000,
                "user": cpu.user_usec * 1000,
            },
            "throttling": {
                "periods": cpu.nr_periods,
                "throttledPeriods": cpu.nr_throttled,
                "throttledTime": cpu.throttled_usec * 1000,
            },
        },
        "cpuset": {},
        "memory": {
            "cache": memory.file,
            "usage": {
                "limit": memory.usage_limit,
                "usage": memory.usage,
                "max": memory.max_usage,
                "failcnt": metrics.memory_events.max,
            },
            "swap": {
                "limit": memory.swap_limit,
                "usage": memory.swap_usage,
                "failcnt": 0,
            },
            "kernel": { "failcnt": 0 },
            "kernelTCP": { "failcnt": 0 },
            "raw": {
                "anon": memory.anon,
                "file": memory.file,
                "kernel_stack": memory.kernel_stack,
                "slab": memory.slab,
                "sock": memory.sock,
                "shmem": memory.shmem,
                "file_mapped": memory.file_mapped,
                "file_dirty": memory.file_dirty,
                "file_writeback": memory.file_writeback,
                "inactive_anon": memory.inactive_anon,
                "active_anon": memory.active_anon,
                "inactive_file": memory.inactive_file,
                "active_file": memory.active_file,
                "unevictable": memory.unevictable,
                "pgfault": memory.pgfault,
                "pgmajfault": memory.pgmajfault,
                "oom_kill": metrics.memory_events.oom_kill,
            },
        },
        "pids": {
            "current": metrics.pids.current,
            "limit": metrics.pids.limit,
        },
        "blkio": {
            "ioServiceBytesRecursive": disks(metrics, |disk| [disk.rbytes, disk.wbytes]),
            "ioServicedRecursive": disks(metrics, |disk| [disk.rios, disk.wios]),
        },
        "hugetlb": metrics
            .hugetlb
            .iter()
            .map(|pages| {
                let figures = json!({ "usage": pages.current, "max": pages.max, "failcnt": 0 });
                (pages.pagesize.clone(), figures)
            })
            .collect::<Map<_, _>>(),
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn disks(metrics: &Metrics, counters: impl Fn(&IOEntry) -> [u64; 2]) -> Vec<Value> {
    let entry = |disk: &IOEntry| {
        let values = ["Read", "Write"].into_iter().zip(counters(disk));
        let (major, minor) = (disk.major, disk.minor);
        values
            .map(|(op, value)| json!({"major": major, "minor": minor, "op": op, "value": value}))
            .collect::<Vec<_>>()
    };
    metrics.io.usage.iter().flat_map(entry).collect()
}
