//! What a start costs: the whole `run` of `true`, and its phases, of Casemate and others,
//! beside a bare boot of the same kernel in QEMU.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::bundle::Bundle;
use crate::machine::{self, Bare, Q35};
use crate::options::{Name, Start};
use crate::podman::Podman;
use crate::report::{Report, Row, Table};
use crate::runtime::{Found, Runtime};
use crate::turns::{self, Contender, progress};
use crate::{Samples, Subject, command, flat};

/// Runs of each unless the command line says otherwise.
const RUNS: usize = 20;

/// The parts of a start that a client sees.
const PHASES: [&str; 3] = ["create", "start", "delete"];

pub(crate) fn measure(subject: &Subject, options: &Start) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let bundle = Bundle::new(subject, folder.path(), options.common.rootfs.as_deref())?;
    let mut found = Found::look(subject, &options.common, &bundle, folder.path())?;
    let runs = options.common.runs_or(RUNS);
    let mut tables = vec![whole(
        subject,
        options,
        &mut found,
        &bundle,
        folder.path(),
        runs,
    )?];
    tables.extend(phases(&found.runtimes, &bundle, runs)?);
    for runtime in found.runtimes.iter().filter(|one| one.is_casemate()) {
        tables.extend(flat::crowd(
            runtime,
            &bundle,
            folder.path(),
            &options.crowd,
            runs,
        )?);
        tables.extend(flat::pod(runtime, &bundle, options.pod, runs)?);
    }
    Ok(Report {
        measurement: "start",
        tables: tables
            .into_iter()
            .filter(|one| !one.rows.is_empty())
            .collect(),
        left_out: found.left_out,
    })
}

/// `run` of `true` to the end, everybody in turns.
fn whole(
    subject: &Subject,
    options: &Start,
    found: &mut Found,
    bundle: &Bundle,
    folder: &Path,
    runs: usize,
) -> Result<Table> {
    let mut contenders = Vec::new();
    if options.common.wants(Name::Qemu) {
        match machine::missing(subject) {
            None => {
                let bare = Bare::that_ends(subject, folder)?;
                let boot = move || bare.boot(Q35).map(drop);
                contenders.push(Contender::new("bare QEMU, boot and end", boot));
            }
            Some(reason) => found.left_out.push(("bare QEMU".to_owned(), reason)),
        }
    }
    let podman = options.podman && command::exists("podman");
    if options.podman && !podman {
        let missing = ("podman".to_owned(), "not installed".to_owned());
        found.left_out.push(missing);
    }
    for runtime in &found.runtimes {
        let name = format!("{} run true", runtime.name());
        contenders.push(Contender::new(&name, move || {
            command::output(&mut runtime.run(bundle, "bench")).map(drop)
        }));
    }
    if podman {
        contenders.extend(engine(subject, bundle, folder)?);
    }
    turns::table("whole run of true", contenders, runs)
}

/// The same by Podman, with Casemate and with runc.
fn engine(subject: &Subject, bundle: &Bundle, folder: &Path) -> Result<Vec<Contender<'static>>> {
    let mut contenders = Vec::new();
    let runtimes = [
        ("casemate", Some(subject.casemate.clone())),
        ("runc", command::find("runc")),
    ];
    let engine = std::rc::Rc::new(Podman::new(folder, bundle.rootfs())?);
    for (name, program) in runtimes {
        let (Some(program), engine) = (program, engine.clone()) else {
            continue;
        };
        let name = format!("podman run --rm true, {name}");
        contenders.push(Contender::new(&name, move || engine.run(&program)));
    }
    Ok(contenders)
}

/// What a client waits for, one phase a table.
fn phases(runtimes: &[Runtime], bundle: &Bundle, runs: usize) -> Result<Vec<Table>> {
    let mut seconds = vec![vec![Vec::new(); runtimes.len()]; PHASES.len()];
    for run in 0..=runs {
        if run > 0 {
            progress("create, start, delete", run, runs)?;
        }
        for (index, runtime) in runtimes.iter().enumerate() {
            for (phase, taken) in one(runtime, bundle)?.into_iter().enumerate() {
                // The first one fills caches and counts for nobody.
                if run > 0 {
                    seconds[phase][index].push(taken);
                }
            }
        }
    }
    let tables = PHASES.into_iter().zip(seconds).map(|(phase, seconds)| {
        let rows = runtimes
            .iter()
            .zip(seconds)
            .filter_map(|(runtime, seconds)| {
                Some(Row {
                    name: format!("{} {phase}", runtime.name()),
                    samples: Samples::new(seconds)?,
                })
            });
        Table::new(phase, "s", rows.collect())
    });
    Ok(tables.collect())
}

/// Seconds of each phase of one start.
fn one(runtime: &Runtime, bundle: &Bundle) -> Result<[f64; PHASES.len()]> {
    let begin = Instant::now();
    let container = runtime.create(bundle, "phases")?;
    let created = Instant::now();
    container.call("start", &[])?;
    let started = Instant::now();
    // Clients delete what has ended, which costs nobody a kill.
    container.await_end()?;
    let ended = Instant::now();
    container.delete()?;
    let spans = [created - begin, started - created, ended.elapsed()];
    Ok(spans.map(|span| span.as_secs_f64()))
}
