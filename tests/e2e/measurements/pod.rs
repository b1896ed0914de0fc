//! Measures pods and `ctr run` with casemate and runc, in turns, and what a pod
//! weighs. `cargo xtask bench pod` runs this and shows the result, which is JSON.

use std::collections::HashSet;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use casemate_e2e::containerd::Release;
use casemate_e2e::cri::{Container, Cri, Pod};
use casemate_e2e::processes::{self, Process};
use casemate_e2e::{BUSYBOX, Containerd, Host, Kind};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let runs = std::env::args().nth(1).context("how many runs?")?.parse()?;
    println!(
        "{}",
        casemate_e2e::alone(Kind::Casemate, |host| measure(host, runs))?
    );
    Ok(())
}

/// Something that is timed with one runtime.
type Action = fn(&Containerd<'_>, &Cri<'_>, Kind) -> Result<Duration>;

const ACTIONS: [(&str, Action); 2] = [
    ("ctr run --rm true", container),
    ("pod, container, first line", pod),
];

fn measure(host: &Host, runs: usize) -> Result<Value> {
    let containerd = Containerd::start(host, Release::V21)?;
    containerd.import("default", BUSYBOX)?;
    let cri = Cri::of(&containerd)?;
    let mut tables = Vec::new();
    for (name, action) in ACTIONS {
        let mut times = [(Kind::Runc, Vec::new()), (Kind::Casemate, Vec::new())];
        for run in 0..=runs {
            for (kind, times) in &mut times {
                let took = action(&containerd, &cri, *kind)?;
                // The first one fills caches and counts for nobody.
                if run > 0 {
                    times.push(took.as_secs_f64());
                }
            }
        }
        let times =
            times.map(|(kind, times)| json!({"name": format!("{name}, {kind}"), "seconds": times}));
        tables.push(json!(times));
    }
    let weights = [Kind::Runc, Kind::Casemate].map(|kind| weigh(&cri, kind));
    let weights: Vec<Value> = weights.into_iter().collect::<Result<_>>()?;
    containerd.stop()?;
    Ok(json!({"tables": tables, "weights": weights}))
}

/// The whole of `ctr run`, without a network.
fn container(containerd: &Containerd<'_>, _: &Cri<'_>, kind: Kind) -> Result<Duration> {
    let id = containerd.host.new_id();
    let (runtime, cgroup) = (
        format!("io.containerd.{kind}.v2"),
        format!("/{}/{id}", containerd.host.cgroup),
    );
    let run = containerd.ctr().command([
        "run",
        "--rm",
        "--runtime",
        &runtime,
        "--cgroup",
        &cgroup,
        BUSYBOX,
        &id,
        "true",
    ]);
    let begin = Instant::now();
    run.run()?.ok()?;
    Ok(begin.elapsed())
}

/// RunPodSandbox with a bridge network, CreateContainer, StartContainer, until
/// the first line is in the log. The pod's end does not count.
fn pod(_: &Containerd<'_>, cri: &Cri<'_>, kind: Kind) -> Result<Duration> {
    let begin = Instant::now();
    let pod = run(cri, kind)?;
    let container = idle(&pod)?;
    while fs::metadata(&container.log).map_or(0, |log| log.len()) == 0 {
        sleep(Duration::from_micros(500));
    }
    let took = begin.elapsed();
    pod.end()?;
    Ok(took)
}

fn run<'c, 'h>(cri: &'c Cri<'h>, kind: Kind) -> Result<Pod<'c, 'h>> {
    cri.pod("bench").handler(&kind.to_string()).run()
}

fn idle<'p, 'c, 'h>(pod: &'p Pod<'c, 'h>) -> Result<Container<'p, 'c, 'h>> {
    pod.container("main", &["sh", "-c", "echo up; exec sleep 1000"])
        .start()
}

/// The processes of an idle pod of one container, and the proportional set size of each.
fn weigh(cri: &Cri<'_>, kind: Kind) -> Result<Value> {
    let before: HashSet<i32> = processes::ours().iter().map(|one| one.pid).collect();
    let pod = run(cri, kind)?;
    idle(&pod)?;
    sleep(Duration::from_secs(2));
    let mut processes = processes::ours();
    processes.retain(|process| !before.contains(&process.pid));
    let weights: Vec<Value> = processes
        .iter()
        .map(|process| Ok(json!({"name": name(process), "kib": pss_kib(process)?})))
        .collect::<Result<_>>()?;
    pod.end()?;
    Ok(json!({"runtime": kind.to_string(), "processes": weights}))
}

/// The part it plays in a sandbox, or else the program.
fn name(process: &Process) -> String {
    let parts = ["monitor", "devices", "stand-in"];
    let part = parts.into_iter().find(|part| process.has_word(part));
    part.unwrap_or_else(|| process.program()).to_owned()
}

fn pss_kib(process: &Process) -> Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", process.pid);
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("Pss:"));
    let line = line.context(path)?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
