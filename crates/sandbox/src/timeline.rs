//! Where the time of a start goes: spans on one clock.
//!
//! The clock is the host's CLOCK_MONOTONIC. The guest reports spans on its own,
//! and with them its "now"; the difference relates the two, wrong by at most
//! the flight time of that answer.

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A stretch of time, nanoseconds of the host's CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Who spent it: "host", "vmm", "kernel", "agent", "container".
    pub part: String,
    /// On what.
    pub name: String,
    /// When it began.
    pub begin_ns: u64,
    /// When it ended.
    pub end_ns: u64,
}

/// The spans of one sandbox so far.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    spans: Vec<Span>,
    guest_offset_ns: Option<i128>,
    /// What a guest says of an earlier time was in another machine's life.
    guest_since_ns: u64,
}

/// Nanoseconds of the host's CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

impl Timeline {
    /// Adds a span that began at `begin_ns` and ends now.
    pub fn until_now(&mut self, part: &str, name: &str, begin_ns: u64) {
        self.add(part, name, begin_ns, now_ns());
    }

    /// Adds a span.
    pub fn add(&mut self, part: &str, name: &str, begin_ns: u64, end_ns: u64) {
        self.spans.push(Span {
            part: part.to_owned(),
            name: name.to_owned(),
            begin_ns,
            end_ns,
        });
    }

    /// Relates the guest's clock to the host's: the guest read `guest_ns`
    /// just before the host read `host_ns`.
    pub fn relate_guest(&mut self, guest_ns: u64, host_ns: u64) {
        self.guest_offset_ns = Some(i128::from(host_ns) - i128::from(guest_ns));
    }

    /// The guest is a clone: its clock stood still until then.
    pub fn guest_stood_still_until(&mut self, host_ns: u64) {
        self.guest_since_ns = host_ns;
    }

    /// An empty timeline that relates the guest's clock in the same way, to be
    /// filled elsewhere and [absorbed](Self::absorb).
    #[must_use]
    pub fn same_clock(&self) -> Self {
        Self {
            spans: Vec::new(),
            guest_offset_ns: self.guest_offset_ns,
            guest_since_ns: self.guest_since_ns,
        }
    }

    /// Takes over what another timeline has.
    pub fn absorb(&mut self, other: Self) {
        self.spans.extend(other.spans);
        self.guest_offset_ns = other.guest_offset_ns.or(self.guest_offset_ns);
        self.guest_since_ns = other.guest_since_ns.max(self.guest_since_ns);
    }

    /// Adds spans that the guest has measured. Without a relation between the
    /// clocks, or with times that fit no clock, they are dropped: the guest's
    /// word is not trusted to make sense.
    pub fn add_guest(&mut self, part: &str, spans: &[casemate_protocol::agent::Span]) {
        let Some(offset) = self.guest_offset_ns else {
            return;
        };
        let on_host = |guest_ns: u64| u64::try_from(i128::from(guest_ns) + offset).ok();
        for span in spans.iter().take(64) {
            let (Some(begin), Some(end)) = (on_host(span.begin_ns), on_host(span.end_ns)) else {
                continue;
            };
            let begin = begin.max(self.guest_since_ns);
            let name: String = span
                .name
                .chars()
                .filter(|c| !c.is_control())
                .take(64)
                .collect();
            // What passed before the agent was not its work.
            match name.as_str() {
                "kernel" => self.add("kernel", "boot", begin, end.max(begin)),
                name => self.add(part, name, begin, end.max(begin)),
            }
        }
    }

    /// The spans in the order of their begin.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = self.spans.clone();
        spans.sort_by_key(|span| (span.begin_ns, std::cmp::Reverse(span.end_ns)));
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_protocol::agent;

    fn guest_span(name: &str, begin_ns: u64, end_ns: u64) -> agent::Span {
        agent::Span {
            name: name.into(),
            begin_ns,
            end_ns,
            ..Default::default()
        }
    }

    #[test]
    fn guest_time_is_shown_on_the_host_clock() {
        let mut timeline = Timeline::default();
        timeline.add_guest("agent", &[guest_span("lost", 0, 1)]);
        timeline.relate_guest(500, 10_500);
        timeline.add_guest("agent", &[guest_span("mount", 100, 200)]);
        timeline.add_guest("agent", &[guest_span("kernel\n", 0, 90)]);
        timeline.add("host", "prepare", 9_000, 9_500);
        let shown: Vec<_> = timeline
            .spans()
            .into_iter()
            .map(|span| (span.part, span.name, span.begin_ns, span.end_ns))
            .collect();
        assert_eq!(
            shown,
            [
                ("host".into(), "prepare".into(), 9_000, 9_500),
                ("kernel".into(), "boot".into(), 10_000, 10_090),
                ("agent".into(), "mount".into(), 10_100, 10_200),
            ]
        );
    }

    #[test]
    fn a_clone_has_done_nothing_before_it_ran() {
        let mut timeline = Timeline::default();
        timeline.guest_stood_still_until(10_000);
        timeline.relate_guest(500, 10_500);
        timeline.add_guest("agent", &[guest_span("resume", 0, 100)]);
        timeline.add_guest("agent", &[guest_span("long ago", 0, 1)]);
        let begin_and_end = |span: &Span| (span.begin_ns, span.end_ns);
        let shown: Vec<_> = timeline.spans().iter().map(begin_and_end).collect();
        assert_eq!(shown, [(10_000, 10_100), (10_000, 10_001)]);
    }

    #[test]
    fn senseless_guest_times_do_no_harm() {
        let mut timeline = Timeline::default();
        timeline.relate_guest(u64::MAX, 5);
        timeline.add_guest("agent", &[guest_span("x", 0, u64::MAX)]);
        assert!(timeline.spans().is_empty());
        timeline.relate_guest(0, 0);
        timeline.add_guest("agent", &[guest_span("x", 9, 3)]);
        assert_eq!(timeline.spans()[0].end_ns, 9);
    }
}
