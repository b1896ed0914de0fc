//! The rate of the processor's time stamp counter.
//!
//! An emulated guest reads the host's counter but is not told its rate, and
//! calibrates it against emulated timers: slowly, and wrongly on a busy host.
//! Told the rate (`tsc_early_khz=`), it does not calibrate.

use std::{
    arch::x86_64::_rdtsc,
    io,
    time::{Duration, Instant},
};

/// A window with an error of about 5 parts per million, which is what a time
/// server corrects with ease: an undisturbed reading takes some 50 ns.
pub const WINDOW: Duration = Duration::from_millis(10);

/// How many times clock and counter are read to find a moment at which nothing
/// came between.
const TRIES: u32 = 8;

/// Measures the rate in kHz by watching the counter for `window`.
///
/// # Errors
/// When something came between every time, by so much that the result would be
/// off by more than a thousandth.
pub fn rate_khz(window: Duration) -> io::Result<u64> {
    let start = moment();
    std::thread::sleep(window);
    let end = moment();
    let ticks = end.ticks.wrapping_sub(start.ticks);
    if (start.apart + end.apart) * 1000 > ticks {
        return Err(io::Error::other(
            "the machine is too busy to measure the rate of its time stamp counter",
        ));
    }
    let nanoseconds = end.clock.duration_since(start.clock).as_nanos().max(1);
    Ok((u128::from(ticks) * 1_000_000 / nanoseconds) as u64)
}

/// Clock and counter at one moment.
struct Moment {
    clock: Instant,
    ticks: u64,
    /// Ticks that went by while the clock was read.
    apart: u64,
}

/// The best of some tries: an interrupt or another process tears a reading apart.
fn moment() -> Moment {
    let mut best = reading();
    for _ in 1..TRIES {
        best = std::cmp::min_by_key(best, reading(), |moment| moment.apart);
    }
    best
}

fn reading() -> Moment {
    let before = ticks();
    let clock = Instant::now();
    let apart = ticks().wrapping_sub(before);
    Moment {
        clock,
        ticks: before.wrapping_add(apart / 2),
        apart,
    }
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user space execute it
    // unless the process asked otherwise (PR_SET_TSC), which none of ours does.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let first = rate_khz(Duration::from_millis(20)).unwrap();
        let second = rate_khz(Duration::from_millis(50)).unwrap();
        assert!(
            (500_000..10_000_000).contains(&first),
            "{first} kHz is no processor's rate"
        );
        assert!(
            first.abs_diff(second) * 1000 < first,
            "{first} and {second} kHz"
        );
    }
}
