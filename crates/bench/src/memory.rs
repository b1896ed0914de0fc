//! What idle sandboxes take of the host: memory by process and by kind, what one more
//! takes, and processor time.

mod processes;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bundle::Bundle;
use crate::interruption::sleep;
use crate::machine::{self, Bare};
use crate::options::{Memory, Name};
use crate::report::{Report, Row, Table};
use crate::runtime::{Found, Running, Runtime};
use crate::turns::progress;
use crate::{Samples, Subject};

/// Runs of each unless the command line says otherwise.
const RUNS: usize = 3;

/// How long what has started is left alone before it is weighed.
const REST: Duration = Duration::from_secs(2);

/// The kinds of memory as `casemate memory` calls them, and how tables do.
const KINDS: [(&str, &str); 6] = [
    ("guest", "guest memory"),
    ("translated", "translated code"),
    ("private", "private"),
    ("copyOnWrite", "copied on write"),
    ("shared", "shared"),
    ("pageCache", "page cache of files"),
];

/// What `casemate memory` tells of a sandbox.
#[derive(Debug)]
pub struct Weight(Value);

/// Weighs the sandbox of a container.
///
/// # Errors
/// When it does not run.
pub fn of_sandbox(container: &Running) -> Result<Weight> {
    let told: Value = serde_json::from_str(&container.call("memory", &["--format", "json"])?)?;
    let sandbox = told["sandboxes"].get(0).cloned();
    sandbox.map(Weight).context("memory: no such sandbox")
}

impl Weight {
    /// Its processes: what each is, its id on the host, and its own weight.
    pub fn processes(&self) -> impl Iterator<Item = (&str, u32, &Value)> {
        let processes = self.0["processes"].as_array().into_iter().flatten();
        processes.filter_map(|process| {
            let pid = process["pid"].as_u64()?.try_into().ok()?;
            Some((process["role"].as_str()?, pid, process))
        })
    }

    /// What each process is, with the MiB of its own and those of the guest's memory.
    pub fn own_and_guest_mib(&self) -> impl Iterator<Item = (&str, f64, f64)> {
        self.processes().map(|(role, _, process)| {
            let guest = mib(&process["kinds"]["guest"]["pss"]);
            (role, mib(&process["pss"]) - guest, guest)
        })
    }

    /// Nanoseconds for which its processes have run so far.
    ///
    /// # Errors
    /// When one has ended.
    pub fn nanoseconds(&self) -> Result<u64> {
        self.processes()
            .map(|(_, pid, _)| processes::nanoseconds(pid))
            .sum()
    }

    /// MiB of all processes, and of the guest's memory that none of them maps.
    pub fn pss_mib(&self) -> f64 {
        mib(&self.0["all"]["pss"]) + mib(&self.0["all"]["unmapped"])
    }

    /// MiB that the guest may touch.
    pub fn machine_mib(&self) -> f64 {
        mib(&self.0["guest"]["size"])
    }

    /// MiB of the guest's memory that are there.
    pub fn guest_mib(&self) -> f64 {
        mib(&self.0["all"]["kinds"]["guest"]["pss"]) + mib(&self.0["all"]["unmapped"])
    }
}

pub(crate) fn measure(subject: &Subject, options: &Memory) -> Result<Report> {
    ensure!(options.sandboxes > 0, "--sandboxes: at least one");
    let folder = tempfile::tempdir()?;
    let bundle = Bundle::new(subject, folder.path(), options.common.rootfs.as_deref())?;
    let mut found = Found::look(subject, &options.common, &bundle, folder.path())?;
    bundle.set_program(&["sleep", "100000"])?;
    let mut idle = Vec::new();
    if options.common.wants(Name::Qemu) {
        match machine::missing(subject) {
            None => idle.push(Idle::Machine(Bare::that_waits(subject, folder.path())?)),
            Some(reason) => found.left_out.push(("bare QEMU".to_owned(), reason)),
        }
    }
    idle.extend(found.runtimes.iter().map(Idle::Container));
    let runs = options.common.runs_or(RUNS);
    let mut rows = weigh(&idle, &bundle, runs)?;
    let mut tables = Vec::new();
    for runtime in found.runtimes.iter().filter(|one| one.is_casemate()) {
        let (one_more, more) = casemate(runtime, &bundle, options)?;
        rows.extend(one_more);
        tables.extend(more);
    }
    tables.insert(
        0,
        Table::new("memory of an idle container (PSS)", "MiB", rows),
    );
    Ok(Report {
        measurement: "memory",
        tables,
        left_out: found.left_out,
    })
}

/// Something that waits and is weighed.
enum Idle<'a> {
    Machine(Bare),
    Container(&'a Runtime),
}

impl Idle<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Machine(_) => "bare QEMU",
            Self::Container(runtime) => runtime.name(),
        }
    }

    /// MiB of one that has just begun to wait.
    fn mib(&self, bundle: &Bundle) -> Result<f64> {
        match self {
            Self::Machine(bare) => {
                let machine = bare.start(&[])?;
                sleep(REST)?;
                Ok(processes::pss_kib(machine.pid())? as f64 / 1024.0)
            }
            Self::Container(runtime) => {
                let container = runtime.run_detached(bundle, "idle")?;
                sleep(REST)?;
                if runtime.is_casemate() {
                    return Ok(of_sandbox(&container)?.pss_mib());
                }
                // Its process, and what the runtime has running for it.
                let mut pids = processes::naming(runtime.root())?;
                pids.insert(container.pid()?);
                let kib: u64 = pids
                    .into_iter()
                    .map(processes::pss_kib)
                    .sum::<Result<_>>()?;
                Ok(kib as f64 / 1024.0)
            }
        }
    }
}

/// Each of them alone, in turns.
fn weigh(idle: &[Idle<'_>], bundle: &Bundle, runs: usize) -> Result<Vec<Row>> {
    let mut numbers = vec![Vec::new(); idle.len()];
    for run in 1..=runs {
        progress("memory", run, runs)?;
        for (one, numbers) in idle.iter().zip(&mut numbers) {
            numbers.push(one.mib(bundle).with_context(|| one.name().to_owned())?);
        }
    }
    let rows = idle.iter().zip(numbers).filter_map(|(one, numbers)| {
        Some(Row {
            name: one.name().to_owned(),
            samples: Samples::new(numbers)?,
        })
    });
    Ok(rows.collect())
}

/// The first sandbox in parts, what each further one takes, and what all of them use of a
/// processor.
fn casemate(
    runtime: &Runtime,
    bundle: &Bundle,
    options: &Memory,
) -> Result<(Option<Row>, [Table; 2])> {
    let name = runtime.name();
    let mut sandboxes = vec![runtime.run_detached(bundle, "idle-0")?];
    sleep(REST)?;
    let first = of_sandbox(&sandboxes[0])?;
    let parts = Table::new(
        &format!("{name}: memory by process and kind (PSS)"),
        "MiB",
        [
            vec![Row::one("all", first.pss_mib())],
            by_process(&first),
            by_kind(&first),
        ]
        .concat(),
    );
    while sandboxes.len() < options.sandboxes {
        let id = format!("idle-{}", sandboxes.len());
        progress("sandboxes", sandboxes.len() + 1, options.sandboxes)?;
        sandboxes.push(runtime.run_detached(bundle, &id)?);
    }
    let wait = Duration::from_secs(options.seconds);
    sleep(wait.max(REST))?;
    let pids = pids_by_role(&sandboxes)?;
    let idle = idle(&pids, wait)?;
    let further = sandboxes.len() - 1;
    let all = sandboxes.iter().map(|one| Ok(of_sandbox(one)?.pss_mib()));
    let all: f64 = all.sum::<Result<f64>>()?;
    let one_more = (further > 0).then(|| {
        let mib = (all - first.pss_mib()) / further as f64;
        Row::one(&format!("{name}, each of {further} further"), mib)
    });
    let title = format!("{name}: {} idle sandboxes, of one core", sandboxes.len());
    Ok((one_more, [parts, Table::new(&title, "%", idle)]))
}

fn by_process(weight: &Weight) -> Vec<Row> {
    let processes = weight.processes();
    let row = |(role, _, process): (&str, u32, &Value)| Row::one(role, mib(&process["pss"]));
    processes.map(row).collect()
}

fn by_kind(weight: &Weight) -> Vec<Row> {
    let kinds = &weight.0["all"]["kinds"];
    let row = |(key, name): (&str, &str)| Row::one(name, mib(&kinds[key]["pss"]));
    let unmapped = Row::one(
        "guest memory, not mapped",
        mib(&weight.0["all"]["unmapped"]),
    );
    KINDS.into_iter().map(row).chain(Some(unmapped)).collect()
}

fn pids_by_role(sandboxes: &[Running]) -> Result<Vec<(String, u32)>> {
    let mut pids = Vec::new();
    for sandbox in sandboxes {
        let weight = of_sandbox(sandbox)?;
        let processes = weight.processes();
        pids.extend(processes.map(|(role, pid, _)| (role.to_owned(), pid)));
    }
    Ok(pids)
}

/// What processes use of one core while nothing happens, in percent: all, and by role.
fn idle(pids: &[(String, u32)], wait: Duration) -> Result<Vec<Row>> {
    // To ask for the processes has woken them.
    sleep(REST)?;
    let before = processes::used(pids)?;
    sleep(wait)?;
    let after = processes::used(pids)?;
    let percent = |nanoseconds: u64| nanoseconds as f64 / wait.as_nanos() as f64 * 100.0;
    let mut rows = vec![Row::one("all", 0.0)];
    let mut sum = 0;
    for (role, used) in after {
        let used = used - before.get(&role).copied().unwrap_or(0);
        sum += used;
        rows.push(Row::one(&role, percent(used)));
    }
    rows[0] = Row::one("all", percent(sum));
    Ok(rows)
}

fn mib(kib: &Value) -> f64 {
    kib.as_f64().unwrap_or(0.0) / 1024.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_casemate_tells_becomes_rows() {
        let weight = Weight(json!({
            "guest": { "size": 262_144, "allocated": 4096 },
            "processes": [{ "role": "vmm", "pid": 7, "pss": 2048 }],
            "all": {
                "pss": 3072,
                "unmapped": 1024,
                "kinds": { "guest": { "pss": 2048 }, "private": { "pss": 1024 } },
            },
        }));
        assert_eq!(weight.pss_mib(), 4.0);
        assert_eq!((weight.machine_mib(), weight.guest_mib()), (256.0, 3.0));
        let [process] = &by_process(&weight)[..] else {
            panic!("one process")
        };
        assert_eq!(
            (process.name.as_str(), process.samples.median()),
            ("vmm", 2.0)
        );
        let kinds = by_kind(&weight);
        assert_eq!(kinds.len(), KINDS.len() + 1);
        assert_eq!(
            (kinds[0].samples.median(), kinds[6].samples.median()),
            (2.0, 1.0)
        );
    }
}
