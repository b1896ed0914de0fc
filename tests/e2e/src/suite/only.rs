//! A choice of scenarios by their names, where a pattern would not do.

use std::collections::BTreeSet;
use std::env;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

/// Names of trials with commas between them.
const ONLY: &str = "CASEMATE_E2E_ONLY";

/// The trials that are asked for; all of them if nobody asks. A name that no trial has is an
/// error: a list that nobody keeps proves less and less.
pub(super) fn wanted(mut trials: Vec<Trial>) -> Result<Vec<Trial>> {
    let Ok(list) = env::var(ONLY) else {
        return Ok(trials);
    };
    let mut names: BTreeSet<&str> = list.split(',').collect();
    trials.retain(|trial| names.remove(trial.name()));
    ensure!(
        names.is_empty(),
        "{ONLY} names what is no scenario: {}",
        names.into_iter().collect::<Vec<_>>().join(", ")
    );
    Ok(trials)
}
