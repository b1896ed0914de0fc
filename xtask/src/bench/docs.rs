//! Makes the tables and charts of `docs/performance.md` anew: what stands between
//! `<!-- begin NAME -->` and `<!-- end NAME -->` there is what `casemate bench NAME` tells.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use casemate_bench::{Variant, bundle::Bundle, report, runtime::Runtime};
use serde_json::Value;

use super::Program;
use crate::{command, workspace};

/// Options of `cargo xtask bench docs`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Runs of each; without it, each measurement's own habit
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Measure only these, separated by commas; what the others have stays
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    #[command(flatten)]
    program: Program,
}

const DOCUMENT: &str = "docs/performance.md";

/// Where charts are, seen from the document.
const CHARTS: &str = "performance";

/// What is measured, with options of its own.
const MEASUREMENTS: [(&str, &[&str]); 6] = [
    ("start", &["--podman", "--crowd", "10,50", "--pod", "8"]),
    ("exec", &[]),
    ("memory", &[]),
    ("parallel", &[]),
    ("file", &[]),
    ("network", &[]),
];

/// The steps of one start, which no measurement has.
const TIMELINE: &str = "timeline";

/// Measures and writes.
pub(crate) fn run(options: &Options) -> Result<()> {
    for name in &options.only {
        let mut known = MEASUREMENTS.iter().map(|(known, _)| *known);
        ensure!(
            name == TIMELINE || known.any(|known| known == name),
            "--only {name}: there is no such measurement"
        );
    }
    let wanted = |name| options.only.is_empty() || options.only.iter().any(|one| one == name);
    let path = workspace::root().join(DOCUMENT);
    let charts = path.with_file_name(CHARTS);
    fs::create_dir_all(&charts)?;
    let casemate = options.program.path()?;
    let write = |name, section: &str| -> Result<()> {
        let document = fs::read_to_string(&path).context(DOCUMENT)?;
        fs::write(&path, replaced(&document, name, section)?)?;
        println!("{DOCUMENT}: {name}");
        Ok(())
    };
    for (name, more) in MEASUREMENTS {
        if wanted(name) {
            let section = measure(&casemate, name, more, options.runs, &charts)?;
            write(name, &section)?;
        }
    }
    if wanted(TIMELINE) {
        write(TIMELINE, &timeline(casemate)?)?;
    }
    Ok(())
}

/// Where the time of one start goes, cold and warm; otherwise as a host is without a
/// configuration.
fn timeline(casemate: PathBuf) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let subject = super::subject(casemate, None);
    let bundle = Bundle::new(&subject, folder.path(), None)?;
    bundle.set_program(&["sleep", "100000"])?;
    let mut section = String::new();
    let ways: [(&str, &str, &[&str]); 2] = [
        ("Cold", "off", &[]),
        ("Warm", "auto", &["template", "create"]),
    ];
    for (name, mode, prepare) in ways {
        let variant = Variant {
            name: name.to_owned(),
            configuration: Some(format!("[template]\nmode = \"{mode}\"\n")),
            prepare: prepare.iter().map(|word| (*word).to_owned()).collect(),
            span: None,
        };
        let runtime = Runtime::casemate(&subject, &variant, folder.path())?;
        // What the first one finds in no cache is not of interest.
        drop(runtime.run_detached(&bundle, "first")?);
        let told = runtime
            .run_detached(&bundle, "second")?
            .call("timeline", &[])?;
        let lines = told.lines().map(str::trim_end).collect::<Vec<_>>();
        section += &format!("{name}:\n\n```text\n{}\n```\n\n", lines.join("\n"));
    }
    Ok(section)
}

/// Runs one measurement; what the document says of it.
fn measure(
    casemate: &Path,
    name: &str,
    more: &[&str],
    runs: Option<usize>,
    charts: &Path,
) -> Result<String> {
    let chart = format!("{name}.svg");
    let mut line = Command::new(casemate);
    line.args(["bench", name]).args(more);
    if let Some(runs) = runs {
        line.args(["--runs", &runs.to_string()]);
    }
    let repeated = command::shown(&line).replace(&casemate.display().to_string(), "casemate");
    line.arg("--svg").arg(charts.join(&chart)).arg("--json");
    let told: Value = serde_json::from_str(&command::output(&mut line)?)?;
    let tables = report::tables_of(&told).context("the measurement told no tables")?;
    let mut section = format!(
        "`{repeated}`, {}:\n\n![{name}]({CHARTS}/{chart})\n",
        conditions(casemate)?
    );
    for table in &tables {
        section += &format!("\n{}", table.markdown());
    }
    for left_out in told["leftOut"].as_array().into_iter().flatten() {
        let [name, reason] = ["name", "reason"].map(|key| left_out[key].as_str());
        let (name, reason) = name.zip(reason).context("what was left out")?;
        section += &format!("\nLeft out: {name} ({reason}).\n");
    }
    Ok(section)
}

/// On what it was measured.
fn conditions(casemate: &Path) -> Result<String> {
    let told = command::output(Command::new(casemate).arg("check"))?;
    let hypervisor = told
        .lines()
        .find_map(|line| line.strip_prefix("hypervisor:"));
    let hypervisor = hypervisor.context("casemate check names no hypervisor")?;
    let program = hypervisor.split(" (").next().unwrap_or_default().trim();
    let tier = hypervisor.rsplit("run on the ").next().unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    Ok(format!("{program}, {tier}, {cores} processors"))
}

/// The document with what is between the marks of `name` replaced.
fn replaced(document: &str, name: &str, section: &str) -> Result<String> {
    let [begin, end] = ["begin", "end"].map(|mark| format!("<!-- {mark} {name} -->\n"));
    let missing = || format!("{DOCUMENT}: has no marks for {name}");
    let (before, rest) = document.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    Ok(format!("{before}{begin}{section}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let document = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n";
        let expected = "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb\n";
        assert_eq!(replaced(document, "x", "new\n").unwrap(), expected);
        assert!(replaced(document, "y", "new\n").is_err());
    }

    #[test]
    fn the_document_has_marks_for_every_measurement() {
        let document = fs::read_to_string(workspace::root().join(DOCUMENT)).unwrap();
        let names = MEASUREMENTS.map(|(name, _)| name);
        for name in names.into_iter().chain([TIMELINE]) {
            replaced(&document, name, "").unwrap();
        }
    }
}
