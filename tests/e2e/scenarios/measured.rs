//! What casemate tells of its weight and its speed is true.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::{Bundle, Container, Host, Scenario, scenarios};
use serde_json::Value;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let all: Vec<Scenario> = scenarios![
        memory_by_process_and_kind,
        memory_of_all_sandboxes,
        memory_is_not_told_of_what_is_not_there,
        merged_memory,
        starts,
        measurements_that_cannot_be
    ];
    all.into_iter()
        .map(|scenario| scenario.only_vm("runc has no such verb or key"))
        .collect()
}

/// How far what is told may be from what is read a moment later.
const TOLERANCE: f64 = 0.2;

/// Every process is there, and their sum is what the kernel says.
fn memory_by_process_and_kind(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    let exec = ["exec", "--detach", &container.id, "sleep", "1000"];
    let streams = host.oci(&exec).start()?;
    streams.exit()?;
    let told = memory(host, &[&container.id])?;
    let [sandbox] = &told[..] else {
        anyhow::bail!("one sandbox was expected: {told:?}")
    };
    let mut roles = Vec::new();
    let (mut sum, mut read) = (0, 0);
    for process in list(sandbox, "processes")? {
        roles.push(process["role"].as_str().context("role")?);
        let kinds = process["kinds"].as_object().context("kinds")?;
        let of_kinds: Result<u64> = kinds.values().map(|kind| number(kind, "pss")).sum();
        ensure!(of_kinds? == number(process, "pss")?, "{process}");
        sum += number(process, "pss")?;
        read += pss_of(number(process, "pid")?)?;
    }
    roles.sort_unstable();
    ensure!(
        roles == ["devices", "monitor", "stand-in", "stand-in", "vmm"],
        "{roles:?}"
    );
    ensure!(number(&sandbox["all"], "pss")? == sum, "{sandbox}");
    let apart = (sum as f64 - read as f64).abs() / read as f64;
    ensure!(apart < TOLERANCE, "told {sum} KiB, the kernel says {read}");

    let guest = &sandbox["guest"];
    let (size, allocated) = (number(guest, "size")?, number(guest, "allocated")?);
    ensure!(size >= 256 << 10 && allocated < size, "{guest}");
    let mapped = number(&sandbox["all"]["kinds"]["guest"], "pss")?;
    ensure!(mapped > 4 << 10 && mapped <= allocated + 1024, "{sandbox}");

    let table = host.oci(&["memory", &container.id]).run()?.ok()?.text();
    for part in ["vmm", "monitor", "GUEST", "PRIVATE", &container.id] {
        contains(&table, part)?;
    }
    container.delete_force()?;
    streams.finish()?;
    Ok(())
}

/// Without an id every sandbox is told of, and no container twice.
fn memory_of_all_sandboxes(host: &Host) -> Result<()> {
    ensure!(memory(host, &[])?.is_empty(), "there is no sandbox yet");
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let containers = [
        Container::run(host, &bundle)?,
        Container::run(host, &bundle)?,
    ];
    let told = memory(host, &[])?;
    let names: Vec<&str> = told
        .iter()
        .flat_map(|sandbox| sandbox["containers"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    let expected: BTreeSet<&str> = containers.iter().map(|one| &*one.id).collect();
    ensure!(told.len() == 2 && names.len() == 2, "{names:?}");
    ensure!(names.into_iter().collect::<BTreeSet<_>>() == expected);
    containers
        .into_iter()
        .try_for_each(|one| one.delete_force())
}

fn memory_is_not_told_of_what_is_not_there(host: &Host) -> Result<()> {
    let refused = host.oci(&["memory", "nobody"]).run()?;
    contains(&one_clear_line(&refused)?, "does not exist")?;
    let refused = host.oci(&["memory", "--format", "xml"]).run()?;
    ensure!(refused.ok().is_err(), "xml was accepted");
    Ok(())
}

/// The host's kernel may merge what is a sandbox's own if the configuration says so, and
/// only then.
fn merged_memory(host: &Host) -> Result<()> {
    if !std::path::Path::new("/proc/self/ksm_stat").exists() {
        host.note("this kernel does not merge memory, or does not tell");
        return Ok(());
    }
    for wanted in ["on", "off"] {
        let file = host.dir.join("config.toml");
        fs::write(&file, format!("[vmm]\nksm = \"{wanted}\"\n"))?;
        let file = file.to_str().context("a path in UTF-8")?;
        let bundle = Bundle::new(host, &["sleep", "1000"])?;
        let id = host.new_id();
        let run = [
            "--config",
            file,
            "run",
            "--detach",
            "--bundle",
            bundle.path(),
            &id,
        ];
        let streams = host.oci(&run).start()?;
        streams.exit()?;
        let told = memory(host, &[&id])?;
        for process in list(&told[0], "processes")? {
            if process["role"] == "stand-in" {
                continue;
            }
            let path = format!("/proc/{}/ksm_stat", number(process, "pid")?);
            let state = fs::read_to_string(&path).context(path)?;
            let yes = state.contains("ksm_merge_any: yes");
            ensure!(yes == (wanted == "on"), "{wanted}: {process}: {state}");
            if wanted == "off" {
                ensure!(!state.contains("ksm_mergeable: yes"), "{process}: {state}");
                ensure!(number(process, "merged")? == 0, "{process}");
            }
        }
        host.oci(&["delete", "--force", &id]).run()?.ok()?;
        streams.finish()?;
    }
    Ok(())
}

/// A measurement of one run: times that can be, and ratios of them.
fn starts(host: &Host) -> Result<()> {
    let chart = host.dir.join("chart.svg");
    let begin = Instant::now();
    let mut line = [
        "bench",
        "start",
        "--runs",
        "1",
        "--runtimes",
        "qemu,casemate,runc",
    ]
    .to_vec();
    line.extend([
        "--svg",
        chart.to_str().context("a path in UTF-8")?,
        "--json",
    ]);
    let told = host
        .oci(&line)
        .limit(Duration::from_secs(120))
        .run()?
        .ok()?;
    let whole = begin.elapsed().as_secs_f64();
    let told: Value = serde_json::from_slice(&told.stdout)?;
    let tables = list(&told, "tables")?;
    let titles: Vec<_> = tables
        .iter()
        .filter_map(|table| table["title"].as_str())
        .collect();
    ensure!(
        titles == ["whole run of true", "create", "start", "delete"],
        "{titles:?}"
    );
    let mut sum = 0.0;
    for table in tables {
        let base = float(&table["rows"][0], "median")?;
        for row in list(table, "rows")? {
            let median = float(row, "median")?;
            let ratio = float(row, "ratio")?;
            ensure!(
                median > 0.0 && (ratio - median / base).abs() < 1e-6,
                "{row}"
            );
            sum += median;
        }
    }
    ensure!(sum < whole, "{sum} s were measured within {whole} s");
    let names = rows(&tables[0])?;
    for name in ["casemate cold", "casemate warm", "bare QEMU"] {
        ensure!(names.iter().any(|one| one.contains(name)), "{names:?}");
    }
    // A virtual machine that boots takes longer than its bare boot takes alone, or is a clone.
    let of = |name: &str| -> Result<f64> {
        let row = list(&tables[0], "rows")?
            .iter()
            .find(|row| row["name"] == name);
        float(
            row.with_context(|| format!("{name} in {names:?}"))?,
            "median",
        )
    };
    let runc = of("runc run true")?;
    ensure!(runc < of("bare QEMU, boot and end")?, "{told}");
    let drawn = fs::read_to_string(chart)?;
    let bars = drawn.matches("<rect").count();
    let all: usize = tables
        .iter()
        .map(|table| Ok(rows(table)?.len()))
        .sum::<Result<usize>>()?;
    ensure!(bars == all, "{bars} bars for {all} rows");
    Ok(())
}

fn measurements_that_cannot_be(host: &Host) -> Result<()> {
    for (line, reason) in [
        (&["bench", "start", "--runs", "0"][..], "--runs"),
        (&["bench", "parallel", "--counts", "0"], "--counts"),
        (&["bench", "exec", "--rootfs", "/nowhere"], "/nowhere"),
        (&["bench", "start", "--json", "/nowhere/x"], "/nowhere/x"),
        (&["bench", "network", "--rootfs", "/"], "--rootfs"),
    ] {
        contains(&one_clear_line(&host.oci(line).run()?)?, reason)?;
    }
    let refused = host.oci(&["bench", "start", "--runtimes", "lxc"]).run()?;
    ensure!(refused.ok().is_err(), "an unknown runtime was accepted");
    Ok(())
}

/// What `casemate memory` tells: one object a sandbox.
fn memory(host: &Host, more: &[&str]) -> Result<Vec<Value>> {
    let line = [&["memory", "--format", "json"], more].concat();
    let told = host.oci(&line).run()?.ok()?;
    let told: Value = serde_json::from_slice(&told.stdout)?;
    ensure!(told["unit"] == "KiB", "{told}");
    Ok(list(&told, "sandboxes")?.clone())
}

/// What the kernel says in one number.
fn pss_of(pid: u64) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context(path)?.parse()?)
}

fn rows(table: &Value) -> Result<Vec<&str>> {
    let rows = list(table, "rows")?.iter();
    rows.map(|row| row["name"].as_str().context("a row has a name"))
        .collect()
}

fn list<'v>(value: &'v Value, key: &str) -> Result<&'v Vec<Value>> {
    value[key]
        .as_array()
        .with_context(|| format!("{key} in {value}"))
}

fn number(value: &Value, key: &str) -> Result<u64> {
    value[key]
        .as_u64()
        .with_context(|| format!("{key} in {value}"))
}

fn float(value: &Value, key: &str) -> Result<f64> {
    value[key]
        .as_f64()
        .with_context(|| format!("{key} in {value}"))
}
