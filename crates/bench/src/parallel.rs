//! Many starts at once: how many a second, and how long each takes.

use std::process::Stdio;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bundle::Bundle;
use crate::options::Parallel;
use crate::report::{Report, Row, Table};
use crate::runtime::{Found, Runtime};
use crate::turns::progress;
use crate::{Samples, Subject, command};

/// Runs of each unless the command line says otherwise.
const RUNS: usize = 3;

pub(crate) fn measure(subject: &Subject, options: &Parallel) -> Result<Report> {
    ensure!(
        !options.counts.is_empty() && !options.counts.contains(&0),
        "--counts: numbers of at least one"
    );
    let folder = tempfile::tempdir()?;
    let bundle = Bundle::new(subject, folder.path(), options.common.rootfs.as_deref())?;
    let found = Found::look(subject, &options.common, &bundle, folder.path())?;
    let runs = options.common.runs_or(RUNS);
    let mut tables = Vec::new();
    for runtime in &found.runtimes {
        tables.extend(one(runtime, &bundle, &options.counts, runs)?);
    }
    Ok(Report {
        measurement: "parallel",
        tables,
        left_out: found.left_out,
    })
}

/// Throughput and the time of each start, for every count; the counts take turns.
fn one(runtime: &Runtime, bundle: &Bundle, counts: &[usize], runs: usize) -> Result<[Table; 2]> {
    let mut rates = vec![Vec::new(); counts.len()];
    let mut times = vec![Vec::new(); counts.len()];
    for run in 1..=runs {
        progress(&format!("{} at once", runtime.name()), run, runs)?;
        for (index, count) in counts.iter().enumerate() {
            let begin = Instant::now();
            times[index].extend(batch(runtime, bundle, *count)?);
            rates[index].push(*count as f64 / begin.elapsed().as_secs_f64());
        }
    }
    let rows = |numbers: Vec<Vec<f64>>| -> Vec<Row> {
        let rows = counts.iter().zip(numbers).filter_map(|(count, numbers)| {
            Some(Row {
                name: format!("{} × {count}", runtime.name()),
                samples: Samples::new(numbers)?,
            })
        });
        rows.collect()
    };
    let name = runtime.name();
    Ok([
        Table::new(
            &format!("{name}: starts a second, N at once"),
            "1/s",
            rows(rates),
        ),
        Table::new(
            &format!("{name}: time of each, N at once"),
            "s",
            rows(times),
        ),
    ])
}

/// Starts that many at once, and tells the seconds of each.
fn batch(runtime: &Runtime, bundle: &Bundle, count: usize) -> Result<Vec<f64>> {
    thread::scope(|scope| {
        let start = |index: usize| {
            let mut line = runtime.run(bundle, &format!("parallel-{index}"));
            line.stdin(Stdio::null());
            scope.spawn(move || -> Result<f64> {
                let begin = Instant::now();
                command::output(&mut line)?;
                Ok(begin.elapsed().as_secs_f64())
            })
        };
        let started: Vec<_> = (0..count).map(start).collect();
        let ended = started.into_iter().map(|one| {
            let result = one.join().ok().context("a start was not awaited")?;
            result.with_context(|| format!("{} at once", count))
        });
        ended.collect()
    })
}
