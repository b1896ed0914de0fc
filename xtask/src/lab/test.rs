//! What is proven in the lab: the facts, and the part of the end-to-end suite that `tests/lab.txt`
//! names, on KVM.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::channel::End;
use super::machine::{Life, Settings};
use super::session::{self, Lab};
use crate::workspace;

const FACTS_LIMIT: Duration = Duration::from_secs(5 * 60);
const JOURNAL_LIMIT: Duration = Duration::from_secs(60);

/// The tier that every container must have: no scenario falls back to emulation unseen.
const CONFIGURATION: &str = "[vmm]\nmin_tier = \"nested\"\n";

/// A part of the test, run in one call.
struct Step {
    name: &'static str,
    limit: Duration,
    /// The line of the host's shell, given what has already passed.
    line: fn(&Path, &[String]) -> Result<String>,
}

const STEPS: [Step; 2] = [
    Step {
        name: "facts",
        limit: FACTS_LIMIT,
        line: facts,
    },
    Step {
        name: "e2e",
        limit: Duration::MAX,
        line: suite,
    },
];

/// Boots a lab, proves all, and leaves nothing but the logs.
/// That, boots included, may take as long as `limit`.
pub(super) fn run(settings: &Settings, limit: Duration) -> Result<()> {
    let begin = Instant::now();
    let mut lab = Lab::boot(settings, Life::Attached)?;
    // That of an earlier failure would be taken for this one's.
    let _ = fs::remove_file(session::folder().join("journal.log"));
    let place = session::folder().join("test.log");
    let mut log = File::create(&place).with_context(|| place.display().to_string())?;
    for step in &STEPS {
        println!("--- {}", step.name);
        if let Err(error) = take(&mut lab, step, begin + limit, &mut log) {
            keep_journal(&lab);
            return Err(error.context(format!(
                "the lab's {} failed; its logs are in {}",
                step.name,
                session::folder().display()
            )));
        }
    }
    println!("lab: all passed in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Takes a step, and once more what is left of it when the host hangs.
fn take(lab: &mut Lab, step: &Step, deadline: Instant, log: &mut File) -> Result<()> {
    loop {
        let passed = passed(&fs::read_to_string(session::folder().join("test.log"))?);
        let line = (step.line)(workspace::root(), &passed)?;
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the time of the whole test is up");
        let end = lab.channel().run_logged(&line, step.limit.min(left), log)?;
        match end {
            End::Code(0) => return Ok(()),
            End::Code(code) => bail!("exit code {code}"),
            End::Late => bail!("it took longer than {} s", step.limit.min(left).as_secs()),
            End::Lost if lab.boots() == 1 => lab.boot_again()?,
            End::Lost => bail!("the host hangs, and hung before"),
        }
    }
}

fn facts(checkout: &Path, _passed: &[String]) -> Result<String> {
    Ok(format!(
        "mkdir -p /etc/casemate; printf '%s' '{CONFIGURATION}' >/etc/casemate/config.toml; \
         CHECKOUT='{0}' '{0}/facts'",
        checkout.display()
    ))
}

fn suite(checkout: &Path, passed: &[String]) -> Result<String> {
    let place = checkout.join("tests/lab.txt");
    let list = fs::read_to_string(&place).with_context(|| place.display().to_string())?;
    let wanted: Vec<&str> = scenarios(&list)
        .filter(|name| !passed.iter().any(|done| done == name))
        .collect();
    ensure!(!wanted.is_empty(), "{} names nothing", place.display());
    Ok(format!(
        "mkdir -p /etc/casemate; printf '%s' '{CONFIGURATION}' >/etc/casemate/config.toml; \
         CASEMATE_BIN=/usr/local/bin/casemate CASEMATE_E2E_ONLY={} '{}/e2e' --test-threads=1",
        wanted.join(","),
        checkout.display()
    ))
}

/// The names in the list: one a line, without what stands behind `#`.
fn scenarios(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|name| !name.is_empty())
}

/// The scenarios that the suite's output says have passed.
fn passed(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix("... ok"))
        .map(|name| name.trim().to_owned())
        .collect()
}

/// What the host's journal has, for who looks into a failure.
fn keep_journal(lab: &Lab) {
    let place = session::folder().join("journal.log");
    let journal = "journalctl --boot --no-pager --output=short-monotonic";
    let kept = File::create(place)
        .map(|mut file| lab.channel().run_kept(journal, JOURNAL_LIMIT, &mut file));
    if !matches!(kept, Ok(Ok(End::Code(0)))) {
        println!("lab: the host's journal could not be read");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_passed_is_not_run_again() {
        let output = "running 2 tests\ntest casemate::run::exit_code ... ok\n\
                      test casemate::exec::detached     ... FAILED\n";
        assert_eq!(passed(output), ["casemate::run::exit_code"]);
    }

    #[test]
    fn the_list_names_scenarios() {
        let list = "# head\n\ncasemate::a::b  # why\ncasemate::c::d\n";
        let names: Vec<&str> = scenarios(list).collect();
        assert_eq!(names, ["casemate::a::b", "casemate::c::d"]);
        let own = fs::read_to_string(workspace::root().join("tests/lab.txt")).unwrap();
        assert!(scenarios(&own).all(|name| name.split("::").count() == 3));
        assert!(scenarios(&own).count() > 10);
    }
}
