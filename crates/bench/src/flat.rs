//! Whether a start costs the same when others run: beside many sandboxes, and as one more
//! container of a pod.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::memory;
use crate::report::{Row, Table};
use crate::runtime::{Running, Runtime};
use crate::turns::progress;
use crate::{Samples, command};

/// `run` of `true` beside none, and beside each of these numbers of sandboxes.
pub(crate) fn crowd(
    runtime: &Runtime,
    bundle: &Bundle,
    folder: &Path,
    sizes: &[usize],
    runs: usize,
) -> Result<Option<Table>> {
    if sizes.is_empty() {
        return Ok(None);
    }
    let sleeping = bundle.copy(&folder.join("crowd"))?;
    sleeping.set_program(&["sleep", "100000"])?;
    let title = format!("{}: run of true beside others", runtime.name());
    let mut sizes = [&[0], sizes].concat();
    sizes.sort_unstable();
    let mut crowd = Vec::new();
    let mut rows = Vec::new();
    for size in sizes {
        while crowd.len() < size {
            let id = format!("crowd-{}", crowd.len());
            crowd.push(runtime.run_detached(&sleeping, &id)?);
        }
        progress(&title, size, size)?;
        let seconds = (0..runs).map(|_| {
            let begin = Instant::now();
            command::output(&mut runtime.run(bundle, "bench"))?;
            Ok(begin.elapsed().as_secs_f64())
        });
        rows.extend(row(&format!("{size} sandboxes run"), seconds.collect())?);
    }
    Ok(Some(Table::new(&title, "s", rows)))
}

/// `run --detach` of each container of a pod, and the memory that each takes.
pub(crate) fn pod(
    runtime: &Runtime,
    bundle: &Bundle,
    containers: usize,
    runs: usize,
) -> Result<Vec<Table>> {
    if containers == 0 {
        return Ok(Vec::new());
    }
    let spec = bundle.copy(&runtime.root().with_extension("pod"))?;
    let mut seconds = vec![Vec::new(); containers];
    let mut mib = vec![Vec::new(); containers];
    for run in 1..=runs {
        progress("containers of a pod", run, runs)?;
        spec.copy_from(bundle)?;
        spec.set_program(&["sleep", "100000"])?;
        let mut pod = Vec::<Running>::new();
        let mut before = 0.0;
        for index in 0..containers {
            let begin = Instant::now();
            pod.push(runtime.run_detached(&spec, &format!("pod-{index}"))?);
            seconds[index].push(begin.elapsed().as_secs_f64());
            let all = memory::of_sandbox(&pod[0])?.pss_mib();
            mib[index].push(all - before);
            before = all;
            if index == 0 {
                join(&spec, &pod[0])?;
            }
        }
        // The first one last: the sandbox is its.
        while pod.pop().is_some() {}
    }
    let name = |index: usize| format!("container {}", index + 1);
    let rows = |numbers: Vec<Vec<f64>>| -> Result<Vec<Row>> {
        let numbers = numbers.into_iter().enumerate();
        let rows = numbers.map(|(index, numbers)| row(&name(index), Ok(numbers)));
        Ok(rows
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    };
    Ok(vec![
        Table::new(
            &format!("{}: start of the n-th container of a pod", runtime.name()),
            "s",
            rows(seconds)?,
        ),
        Table::new(
            &format!("{}: memory that it takes", runtime.name()),
            "MiB",
            rows(mib)?,
        ),
    ])
}

fn row(name: &str, numbers: Result<Vec<f64>>) -> Result<Option<Row>> {
    let name = name.to_owned();
    Ok(Samples::new(numbers?).map(|samples| Row { name, samples }))
}

/// The containers of this bundle are in the sandbox of `first` from now on.
///
/// # Errors
/// When the bundle cannot be written.
pub fn join(bundle: &Bundle, first: &Running) -> Result<()> {
    let pid = first.pid().context("the first container of the pod")?;
    bundle.edit(|spec| enter(spec, pid))
}

fn enter(spec: &mut Value, pid: u32) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    for namespace in namespaces.into_iter().flatten() {
        let name = match namespace["type"].as_str() {
            Some("network") => "net",
            Some("ipc") => "ipc",
            Some("uts") => "uts",
            _ => continue,
        };
        namespace["path"] = json!(format!("/proc/{pid}/ns/{name}"));
    }
    // The host name is that of the namespace.
    spec.as_object_mut().map(|spec| spec.remove("hostname"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_joins_what_pods_share() {
        let mut spec = json!({
            "hostname": "a",
            "linux": { "namespaces": [{ "type": "network" }, { "type": "pid" }, { "type": "uts" }] },
        });
        enter(&mut spec, 7);
        let expected = json!({
            "linux": { "namespaces": [
                { "type": "network", "path": "/proc/7/ns/net" },
                { "type": "pid" },
                { "type": "uts", "path": "/proc/7/ns/uts" },
            ] },
        });
        assert_eq!(spec, expected);
    }
}
