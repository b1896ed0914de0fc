//! Things that are measured beside each other, taking turns, so that their ratios hold on a
//! noisy machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::runtime::Program;

/// Options of the measurements that compare Casemate with others.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Runs of each, of which the median is shown
    #[arg(long, default_value_t = 20)]
    pub(super) runs: usize,
    #[command(flatten)]
    pub(super) program: Program,
}

/// Something that is measured.
pub(super) struct Contender {
    name: String,
    action: Box<dyn Fn() -> Result<()>>,
    times: Vec<Duration>,
}

impl Contender {
    pub(super) fn new(name: &str, action: impl Fn() -> Result<()> + 'static) -> Self {
        Self {
            name: name.to_owned(),
            action: Box::new(action),
            times: Vec::new(),
        }
    }

    /// One whose times are known.
    pub(super) fn measured(name: &str, times: Vec<Duration>) -> Self {
        Self {
            times,
            ..Self::new(name, || Ok(()))
        }
    }

    fn measure(&mut self) -> Result<()> {
        let begin = Instant::now();
        (self.action)().with_context(|| self.name.clone())?;
        self.times.push(begin.elapsed());
        Ok(())
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut times = self.times.clone();
        times.sort();
        times
    }

    fn median(&self) -> Duration {
        let times = self.sorted();
        times[times.len() / 2]
    }
}

/// Measures each of them `runs` times, in turns.
pub(super) fn take(contenders: &mut [Contender], runs: usize) -> Result<()> {
    ensure!(runs > 0, "--runs: at least one");
    for contender in contenders.iter_mut() {
        // The first one fills caches and counts for nobody.
        contender.measure()?;
        contender.times.clear();
    }
    for run in 1..=runs {
        for contender in contenders.iter_mut() {
            contender.measure()?;
        }
        eprint!("\rrun {run} of {runs}");
    }
    eprintln!();
    Ok(())
}

/// Prints what was measured, and under `ratio` how many times the first one's median it is.
pub(super) fn print_table(contenders: &[Contender], ratio: &str) {
    let base = contenders[0].median().as_secs_f64();
    println!(
        "{:34} {:>10} {:>10} {:>10} {ratio:>12}",
        "", "median", "fastest", "slowest"
    );
    for contender in contenders {
        let times = contender.sorted();
        println!(
            "{:34} {:>8.4} s {:>8.4} s {:>8.4} s {:>12.2}",
            contender.name,
            contender.median().as_secs_f64(),
            times[0].as_secs_f64(),
            times[times.len() - 1].as_secs_f64(),
            contender.median().as_secs_f64() / base,
        );
    }
}
