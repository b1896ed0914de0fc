//! What idle sandboxes take of the host: memory by process and by kind, what one more
//! takes, and processor time.

mod processes;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Subject;
use crate::bundle::Bundle;
use crate::interruption::sleep;
use crate::machine::{self, Bare};
use crate::options::{Memory, Name};
use crate::report::{Report, Row, Table};
use crate::runtime::{Found, Running, Runtime};
use crate::turns::progress;

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
    let mut totals = Vec::new();
    let mut tables = Vec::new();
    if options.common.wants(Name::Qemu) {
        match machine::missing(subject) {
            None => {
                let bare = Bare::that_waits(subject, folder.path())?.start(&[])?;
                sleep(REST)?;
                let kib = processes::pss_kib(bare.pid())?;
                totals.push(Row::one("bare QEMU", kib as f64 / 1024.0));
            }
            Some(reason) => found.left_out.push(("bare QEMU".to_owned(), reason)),
        }
    }
    for runtime in &found.runtimes {
        if runtime.is_casemate() {
            let (rows, more) = casemate(runtime, &bundle, options)?;
            totals.extend(rows);
            tables.extend(more);
        } else {
            totals.push(other(runtime, &bundle)?);
        }
    }
    tables.insert(
        0,
        Table::new("memory of an idle container (PSS)", "MiB", totals),
    );
    Ok(Report {
        measurement: "memory",
        tables,
        left_out: found.left_out,
    })
}

/// The first sandbox in parts, what each further one takes, and what all of them use of a
/// processor.
fn casemate(
    runtime: &Runtime,
    bundle: &Bundle,
    options: &Memory,
) -> Result<(Vec<Row>, Vec<Table>)> {
    let name = runtime.name();
    let mut sandboxes = vec![runtime.run_detached(bundle, "idle-0")?];
    sleep(REST)?;
    let first = of_sandbox(&sandboxes[0])?;
    let mut totals = vec![Row::one(name, first.pss_mib())];
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
    if let [_, further @ ..] = &sandboxes[..]
        && !further.is_empty()
    {
        let all = sandboxes.iter().map(|one| Ok(of_sandbox(one)?.pss_mib()));
        let all: f64 = all.sum::<Result<f64>>()?;
        let one_more = (all - first.pss_mib()) / further.len() as f64;
        totals.push(Row::one(&format!("{name}, each further"), one_more));
    }
    let title = format!("{name}: {} idle sandboxes, of one core", sandboxes.len());
    Ok((totals, vec![parts, Table::new(&title, "%", idle)]))
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

/// A container of another runtime: its process, and what the runtime has running for it.
fn other(runtime: &Runtime, bundle: &Bundle) -> Result<Row> {
    let container = runtime.run_detached(bundle, "idle")?;
    sleep(REST)?;
    let mut pids = processes::naming(runtime.root())?;
    pids.insert(container.pid()?);
    let kib = pids
        .into_iter()
        .map(processes::pss_kib)
        .sum::<Result<u64>>()?;
    Ok(Row::one(runtime.name(), kib as f64 / 1024.0))
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
