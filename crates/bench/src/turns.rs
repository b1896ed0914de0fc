//! Things that are measured beside each other, taking turns, so that their ratios hold on a
//! noisy machine.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::report::{Row, Table};
use crate::{Samples, interruption};

type Action<'a> = Box<dyn Fn() -> Result<Duration> + 'a>;

/// Something that is measured.
pub struct Contender<'a> {
    name: String,
    action: Action<'a>,
    seconds: Vec<f64>,
}

impl<'a> Contender<'a> {
    /// One that takes as long as `action`.
    pub fn new(name: &str, action: impl Fn() -> Result<()> + 'a) -> Self {
        Self::timed(name, move || {
            let begin = Instant::now();
            action()?;
            Ok(begin.elapsed())
        })
    }

    /// One whose action says how long it took.
    pub fn timed(name: &str, action: impl Fn() -> Result<Duration> + 'a) -> Self {
        Self {
            name: name.to_owned(),
            action: Box::new(action),
            seconds: Vec::new(),
        }
    }

    fn measure(&self) -> Result<f64> {
        interruption::check()?;
        let taken = (self.action)().with_context(|| self.name.clone())?;
        Ok(taken.as_secs_f64())
    }
}

/// Measures each of them `runs` times, in turns, and makes a table of the seconds, where
/// the first one is what others are compared with.
///
/// # Errors
/// When one of them fails.
pub fn table(title: &str, mut contenders: Vec<Contender<'_>>, runs: usize) -> Result<Table> {
    for contender in &contenders {
        // The first one fills caches and counts for nobody.
        contender.measure()?;
    }
    for run in 1..=runs {
        progress(title, run, runs)?;
        for contender in &mut contenders {
            let seconds = contender.measure()?;
            contender.seconds.push(seconds);
        }
    }
    let rows = contenders.into_iter().filter_map(|contender| {
        Some(Row {
            name: contender.name,
            samples: Samples::new(contender.seconds)?,
        })
    });
    Ok(Table::new(title, "s", rows.collect()))
}

/// Says on a terminal how far a measurement is.
///
/// # Errors
/// When the user wants no more of it.
pub(crate) fn progress(what: &str, step: usize, steps: usize) -> Result<()> {
    interruption::check()?;
    if std::io::stderr().is_terminal() {
        let end = if step == steps { "\n" } else { "" };
        eprint!("\r{what}: {step} of {steps}{end}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn they_take_turns_and_the_first_round_does_not_count() {
        let calls = RefCell::new(Vec::new());
        let contender = |name: &'static str, seconds| {
            let calls = &calls;
            Contender::timed(name, move || {
                calls.borrow_mut().push(name);
                Ok(Duration::from_secs(seconds))
            })
        };
        let table = table("", vec![contender("a", 1), contender("b", 3)], 2).unwrap();
        assert_eq!(*calls.borrow(), ["a", "b", "a", "b", "a", "b"]);
        assert_eq!(table.rows[1].samples.all(), [3.0, 3.0]);
    }

    #[test]
    fn a_failure_says_whose_it_is() {
        let failing = Contender::new("runc", || anyhow::bail!("no"));
        let error = table("", vec![failing], 1).unwrap_err();
        assert_eq!(format!("{error:#}"), "runc: no");
    }
}
