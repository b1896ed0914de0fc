//! Where the time goes: spans on the guest's monotonic clock, which the kernel
//! starts at zero when it boots.

use casemate_protocol::agent::Span;
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn now() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds of CLOCK_REALTIME.
pub(crate) fn realtime() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("the clock exists on every Linux");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Spans that follow each other without a gap.
#[derive(Debug)]
pub(crate) struct Timeline {
    spans: Vec<Span>,
    last: u64,
}

impl Timeline {
    /// The first span begins at `begin`.
    pub(crate) fn since(begin: u64) -> Self {
        Self {
            spans: Vec::new(),
            last: begin,
        }
    }

    /// What happened since the last mark was `name`.
    pub(crate) fn mark(&mut self, name: &str) {
        let now = now();
        self.spans.push(span(name, self.last, now));
        self.last = now;
    }

    /// Takes in what another process has recorded meanwhile.
    pub(crate) fn adopt(&mut self, spans: Vec<Span>) {
        if let Some(last) = spans.last() {
            self.last = last.end_ns;
        }
        self.spans.extend(spans);
    }

    pub(crate) fn into_spans(self) -> Vec<Span> {
        self.spans
    }
}

/// One span.
pub(crate) fn span(name: &str, begin_ns: u64, end_ns: u64) -> Span {
    Span {
        name: name.to_owned(),
        begin_ns,
        end_ns,
        ..Span::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_follow_each_other() {
        let mut timeline = Timeline::since(5);
        timeline.mark("one");
        timeline.adopt(vec![span("child", 7, u64::MAX - 1)]);
        timeline.mark("two");
        let spans = timeline.into_spans();
        assert_eq!(spans[0].begin_ns, 5);
        assert!(spans[0].end_ns > 5);
        assert_eq!(spans[2].begin_ns, u64::MAX - 1);
        assert_eq!(spans[2].name, "two");
    }
}
