//! What an exec costs: the round trip of `exec ID true` in a container that runs.

use anyhow::Result;

use crate::Subject;
use crate::bundle::Bundle;
use crate::options::Exec;
use crate::report::Report;
use crate::runtime::Found;
use crate::turns::{self, Contender};

/// Runs of each unless the command line says otherwise.
const RUNS: usize = 30;

pub(crate) fn measure(subject: &Subject, options: &Exec) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let bundle = Bundle::new(subject, folder.path(), options.common.rootfs.as_deref())?;
    let found = Found::look(subject, &options.common, &bundle, folder.path())?;
    bundle.set_program(&["sleep", "100000"])?;
    let mut contenders = Vec::new();
    for runtime in &found.runtimes {
        let running = runtime.run_detached(&bundle, "bench")?;
        let name = format!("{} exec ID true", runtime.name());
        contenders.push(Contender::new(&name, move || {
            running.call("exec", &["/bin/busybox", "true"]).map(drop)
        }));
    }
    let runs = options.common.runs_or(RUNS);
    Ok(Report {
        measurement: "exec",
        tables: vec![turns::table("exec of true", contenders, runs)?],
        left_out: found.left_out,
    })
}
