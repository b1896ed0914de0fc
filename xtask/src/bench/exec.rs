//! What an exec costs: the round trip of `exec ID true` in a container that runs, with Casemate
//! beside runc and crun. All in one go, taking turns.

use anyhow::{Result, ensure};

use super::bundle::Bundle;
use super::runtime::Runtime;
use super::turns::{self, Contender, Options};

/// Measures and prints a table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bundle = Bundle::new(folder.path())?;
    let mut runtimes = Runtime::others(&bundle, folder.path());
    runtimes.push(Runtime::casemate(&options.program.path()?, folder.path()));
    ensure!(
        runtimes[0].name() == "runc",
        "runc, with which the others are compared, does not work here"
    );
    bundle.set_program(&["sleep", "100000"])?;
    let mut contenders = runtimes
        .iter()
        .map(|runtime| contender(runtime, &bundle))
        .collect::<Result<Vec<_>>>()?;
    turns::take(&mut contenders, options.runs)?;
    turns::print_table(&contenders, "x runc");
    Ok(())
}

/// The execs of one runtime, all in the same container.
fn contender(runtime: &Runtime, bundle: &Bundle) -> Result<Contender> {
    let running = runtime.run_detached(bundle, &format!("bench-{}", runtime.name()))?;
    let name = format!("{} exec ID true", runtime.name());
    Ok(Contender::new(&name, move || {
        running.call("exec", &["true"]).map(drop)
    }))
}
