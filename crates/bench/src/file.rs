//! Files in a volume: many small ones, and streams. A shell in the container does the work
//! and says when each step is done; the moments are taken on the host, on one clock for all.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::bundle::Bundle;
use crate::options::File;
use crate::report::{Report, Row, Table};
use crate::runtime::{Found, Running};
use crate::turns::progress;
use crate::{Samples, Subject};

/// Runs of each unless the command line says otherwise.
const RUNS: usize = 5;

/// Where containers have the volume.
const VOLUME: &str = "/work";

/// The steps, with the unit of their numbers.
const STEPS: [(&str, &str); 6] = [
    ("small files: create, each", "ms"),
    ("small files: look whether it is there, each", "ms"),
    ("small files: read, each", "ms"),
    ("small files: remove, each", "ms"),
    ("stream: write and sync", "MiB/s"),
    ("stream: read what the host has written", "MiB/s"),
];

pub(crate) fn measure(subject: &Subject, options: &File) -> Result<Report> {
    ensure!(options.files > 0, "--files: at least one");
    ensure!(options.stream_mib > 0, "--stream-mib: at least one");
    let folder = tempfile::tempdir()?;
    let volume = folder.path().join("volume");
    fs::create_dir(&volume)?;
    let bundle = Bundle::new(subject, folder.path(), options.common.rootfs.as_deref())?;
    let found = Found::look(subject, &options.common, &bundle, folder.path())?;
    bundle.set_program(&["sleep", "100000"])?;
    mount(&bundle, &volume)?;
    let started = found.runtimes.iter();
    let containers: Vec<Running> = started
        .map(|runtime| runtime.run_detached(&bundle, "bench"))
        .collect::<Result<_>>()?;
    let mut numbers = vec![vec![Vec::new(); containers.len()]; STEPS.len()];
    let runs = options.common.runs_or(RUNS);
    for run in 0..=runs {
        if run > 0 {
            progress("files", run, runs)?;
        }
        for (index, container) in containers.iter().enumerate() {
            let name = format!("{index}-{run}");
            let taken = steps(container, &volume, &name, options)
                .with_context(|| found.runtimes[index].name().to_owned())?;
            for (step, number) in taken.into_iter().enumerate() {
                // The first one fills caches and counts for nobody.
                if run > 0 {
                    numbers[step][index].push(number);
                }
            }
        }
    }
    let tables = STEPS
        .into_iter()
        .zip(numbers)
        .map(|((title, unit), numbers)| {
            let rows = found
                .runtimes
                .iter()
                .zip(numbers)
                .filter_map(|(runtime, numbers)| {
                    Some(Row {
                        name: runtime.name().to_owned(),
                        samples: Samples::new(numbers)?,
                    })
                });
            Table::new(title, unit, rows.collect())
        });
    Ok(Report {
        measurement: "file",
        tables: tables.collect(),
        left_out: found.left_out,
    })
}

fn mount(bundle: &Bundle, volume: &Path) -> Result<()> {
    bundle.edit(|spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({
                "destination": VOLUME,
                "type": "bind",
                "source": volume,
                "options": ["rbind", "rw"],
            }));
        }
    })
}

/// Does all steps in a folder of the volume that is new, and tells the number of each.
fn steps(container: &Running, volume: &Path, name: &str, options: &File) -> Result<Vec<f64>> {
    let folder = volume.join(name);
    fs::create_dir(&folder)?;
    let stream = options.stream_mib;
    // The pattern is no hole in the file.
    fs::write(folder.join("from-host"), vec![0x5a_u8; stream << 20])?;
    let script = script(name, options.files, stream);
    let moments = moments(container, &script)?;
    fs::remove_dir_all(&folder)?;
    ensure!(
        moments.len() == STEPS.len() + 1,
        "the container's shell said {} of {} words",
        moments.len(),
        STEPS.len() + 1
    );
    let spans = moments.windows(2).zip(STEPS);
    let numbers = spans.map(|(span, (_, unit))| {
        let seconds = (span[1] - span[0]).as_secs_f64();
        match unit {
            "ms" => seconds * 1000.0 / options.files as f64,
            _ => stream as f64 / seconds,
        }
    });
    Ok(numbers.collect())
}

/// Says a word before the first step and after each. Nothing but BusyBox's shell is in the
/// way of small files.
fn script(name: &str, files: usize, stream: usize) -> String {
    let each = |action: &str| {
        format!("i=0; while [ $i -lt {files} ]; do {action}; i=$((i+1)); done; echo .")
    };
    let steps = [
        format!("cd {VOLUME}/{name} && echo ."),
        each("echo 0123456789 > file$i"),
        each("[ -e file$i ] || exit 1"),
        each("read x < file$i"),
        "/bin/busybox rm file*; echo .".to_owned(),
        format!(
            "/bin/busybox dd if=/dev/zero of=from-here bs=1M count={stream} conv=fsync \
             2>/dev/null && echo ."
        ),
        "/bin/busybox dd if=from-host of=/dev/null bs=1M 2>/dev/null && echo .".to_owned(),
    ];
    steps.join("\n")
}

/// Runs the script in the container; the moments at which its words came.
fn moments(container: &Running, script: &str) -> Result<Vec<Instant>> {
    let mut shell = container
        .line("exec", &["/bin/busybox", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("exec")?;
    let words = shell.stdout.take().context("an exec has an output")?;
    let mut moments = Vec::new();
    for word in BufReader::new(words).lines() {
        word?;
        moments.push(Instant::now());
    }
    let status = shell.wait()?;
    ensure!(status.success(), "the container's shell: {status}");
    Ok(moments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_says_one_word_more_than_there_are_steps() {
        let script = script("a", 3, 2);
        assert_eq!(script.matches("echo .").count(), STEPS.len() + 1);
        assert!(script.contains("$i -lt 3") && script.contains("count=2"));
    }
}
