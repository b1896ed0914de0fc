//! The process' log. The libraries' records pass in bounded number: a guest can
//! provoke errors at will, and must not fill the host's disk.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};

/// Records that may come at once.
const BURST: u32 = 50;
/// After that, one more in this time.
const PAUSE: Duration = Duration::from_secs(10);

/// A budget of records that refills with time.
#[derive(Debug)]
struct Budget {
    left: u32,
    refilled: Instant,
    suppressed: u64,
}

impl Budget {
    fn new(now: Instant) -> Budget {
        Budget {
            left: BURST,
            refilled: now,
            suppressed: 0,
        }
    }

    /// Whether a record may pass, and how many were suppressed before it.
    fn spend(&mut self, now: Instant) -> Option<u64> {
        let earned = now.saturating_duration_since(self.refilled).as_secs() / PAUSE.as_secs();
        if earned > 0 {
            self.left = u32::try_from(earned)
                .unwrap_or(BURST)
                .saturating_add(self.left)
                .min(BURST);
            self.refilled = now;
        }
        if self.left == 0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

struct Bridge(Mutex<Budget>);

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let budget = self.0.lock();
        let Some(suppressed) = budget
            .ok()
            .and_then(|mut budget| budget.spend(Instant::now()))
        else {
            return;
        };
        let (library, message) = (record.target(), record.args());
        match record.level() {
            log::Level::Error => tracing::error!(library, suppressed, "{message}"),
            _ => tracing::warn!(library, suppressed, "{message}"),
        }
    }

    fn flush(&self) {}
}

/// Logs to standard error, which is the monitor's log file. Where a subscriber
/// or logger is there already, it stays.
pub(crate) fn start() {
    let bridge = Box::new(Bridge(Mutex::new(Budget::new(Instant::now()))));
    if log::set_boxed_logger(bridge).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .finish();
    // Set by hand: the subscriber's own start would take the libraries' records
    // as well, all of them.
    let _ = tracing::subscriber::set_global_default(lines);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let passed = (0..1000).filter(|_| budget.spend(start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(budget.spend(start + PAUSE), Some(1000 - u64::from(BURST)));
        assert_eq!(budget.spend(start + PAUSE), None);
    }

    #[test]
    fn quiet_times_earn_no_more_than_one_burst() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        budget.left = 0;
        let later = start + PAUSE * 100_000;
        let passed = (0..1000).filter(|_| budget.spend(later).is_some()).count();
        assert_eq!(passed, BURST as usize);
    }
}
