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

/// The shortest window with an error below 20 parts per million, which is what
/// a time server corrects with ease: reading clock and counter takes 0.1 µs.
pub const WINDOW: Duration = Duration::from_millis(10);

/// How often a measurement that something else ran into is repeated.
const TRIES: u32 = 10;

/// Measures the rate in kHz by watching the counter for `window`.
pub fn rate_khz(window: Duration) -> io::Result<u64> {
    for _ in 0..TRIES {
        let (start, ticks_at_start) = moment();
        std::thread::sleep(window);
        let (end, ticks_at_end) = moment();
        let (Some(start), Some(end)) = (start, end) else {
            continue;
        };
        let nanoseconds = end.duration_since(start).as_nanos() as u64;
        let ticks = ticks_at_end.wrapping_sub(ticks_at_start);
        return Ok((u128::from(ticks) * 1_000_000 / u128::from(nanoseconds.max(1))) as u64);
    }
    Err(io::Error::other(
        "the machine is too busy to measure the rate of its time stamp counter",
    ))
}

/// The clock and the counter at one moment; no clock if the two reads were torn apart by an
/// interrupt or another process.
fn moment() -> (Option<Instant>, u64) {
    let before = ticks();
    let now = Instant::now();
    let after = ticks();
    // 20 µs at 1 GHz, 5 µs at 4 GHz: far above an undisturbed read even where the clock is a
    // system call.
    let whole = after.wrapping_sub(before) < 20_000;
    (
        whole.then_some(now),
        before + (after.wrapping_sub(before)) / 2,
    )
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
