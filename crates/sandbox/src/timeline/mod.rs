//! Where the time of a start goes: spans on one clock. What is done later (an
//! exec, a removal) leaves spans as well, the newest of it.
//!
//! The clock is the host's CLOCK_MONOTONIC. The guest reports spans on its own,
//! and with them its "now"; the difference relates the two, wrong by at most
//! the flight time of that answer.

mod explained;

use std::collections::VecDeque;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub use explained::Explained;

/// How much of what is done after the start is remembered: a container may have
/// any number of execs.
const ACTIVITIES: usize = 16;

/// Longest name that a guest may give a span, and how many it may send at once.
const MAX_NAME: usize = 64;
const MAX_SPANS: usize = 64;

/// A stretch of time, nanoseconds of the host's CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Who spent it: "host", "client", "vmm", "vsock", "kernel", "agent",
    /// "container".
    pub part: String,
    /// On what.
    pub name: String,
    /// When it began.
    pub begin_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// What was done; empty for the start.
    pub activity: String,
}

/// The spans of one sandbox so far.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    activity: String,
    spans: Vec<Span>,
    later: VecDeque<Vec<Span>>,
    guest_offset_ns: Option<i128>,
    /// What a guest says of an earlier time was in another machine's life.
    guest_since_ns: u64,
}

/// Nanoseconds of the host's CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// When this process began, as far as it knows: it has worked all the time. To
/// be asked first of all.
pub fn begin_of_process_ns() -> u64 {
    now_ns().saturating_sub(nanoseconds(ClockId::CLOCK_PROCESS_CPUTIME_ID))
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("every Linux has this clock");
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
            activity: self.activity.clone(),
        });
    }

    /// Adds a call into the guest that was made at `begin_ns` and has been
    /// answered now: the guest's own spans, and the ways there and back.
    pub fn answered(
        &mut self,
        part: &str,
        call: &str,
        begin_ns: u64,
        spans: &[casemate_protocol::agent::Span],
    ) {
        let now = now_ns();
        let before = self.spans.len();
        self.add_guest(part, spans);
        let of_guest = &self.spans[before..];
        let first = of_guest.iter().map(|span| span.begin_ns).min();
        let last = of_guest.iter().map(|span| span.end_ns).max();
        if let (Some(first), Some(last)) = (first, last) {
            if first > begin_ns {
                self.add("vsock", "request", begin_ns, first);
            }
            if (begin_ns..now).contains(&last) {
                self.add("vsock", "answer", last, now);
            }
        }
        self.add("host", call, begin_ns, now);
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
            guest_offset_ns: self.guest_offset_ns,
            guest_since_ns: self.guest_since_ns,
            ..Self::default()
        }
    }

    /// The same for what is done after the start.
    #[must_use]
    pub fn activity(&self, name: String) -> Self {
        Self {
            activity: name,
            ..self.same_clock()
        }
    }

    /// Takes over what another timeline has.
    pub fn absorb(&mut self, other: Self) {
        if other.activity == self.activity {
            self.spans.extend(other.spans);
        } else if !other.spans.is_empty() {
            self.later.push_back(other.spans);
            if self.later.len() > ACTIVITIES {
                self.later.pop_front();
            }
        }
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
        for span in spans.iter().take(MAX_SPANS) {
            let (Some(begin), Some(end)) = (on_host(span.begin_ns), on_host(span.end_ns)) else {
                continue;
            };
            let begin = begin.max(self.guest_since_ns);
            let name: String = span
                .name
                .chars()
                .filter(|c| !c.is_control())
                .take(MAX_NAME)
                .collect();
            // What passed before the agent was not its work.
            match name.as_str() {
                "kernel" => {
                    self.add_firmware(begin);
                    self.add("kernel", "boot", begin, end.max(begin));
                }
                name => self.add(part, name, begin, end.max(begin)),
            }
        }
    }

    /// What the VMM has run before the kernel had a clock.
    fn add_firmware(&mut self, kernel_begin_ns: u64) {
        let vmm = self.spans.iter().filter(|span| span.part == "vmm");
        if let Some(begin) = vmm.map(|span| span.end_ns).max()
            && begin < kernel_begin_ns
        {
            let name = "firmware, kernel without a clock";
            self.add("vmm", name, begin, kernel_begin_ns);
        }
    }

    /// The spans in the order of their begin, those of the start first.
    pub fn spans(&self) -> Vec<Span> {
        let sorted = |spans: &Vec<Span>| {
            let mut spans = spans.clone();
            spans.sort_by_key(|span| (span.begin_ns, std::cmp::Reverse(span.end_ns)));
            spans
        };
        let activities = std::iter::once(&self.spans).chain(&self.later);
        activities.flat_map(sorted).collect()
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
    fn a_call_is_what_the_guest_did_and_the_ways_there_and_back() {
        let now = now_ns();
        let mut timeline = Timeline::default();
        timeline.relate_guest(0, now - 1000);
        let spans = [guest_span("work", 300, 600)];
        timeline.answered("agent", "call", now - 900, &spans);
        let spans = timeline.spans();
        let named: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(named, ["call", "request", "work", "answer"]);
        assert_eq!(spans[1].end_ns, now - 700);
        assert_eq!(spans[3].begin_ns, now - 400);
        assert_eq!(spans[3].end_ns, spans[0].end_ns);
    }

    #[test]
    fn what_comes_before_the_kernel_s_clock_is_the_firmware_s() {
        let mut timeline = Timeline::default();
        timeline.add("vmm", "start", 0, 50);
        timeline.relate_guest(0, 70);
        timeline.add_guest("agent", &[guest_span("kernel", 0, 10)]);
        let spans = timeline.spans();
        assert_eq!((spans[1].begin_ns, spans[1].end_ns), (50, 70));
    }

    #[test]
    fn the_newest_activities_are_remembered_behind_the_start() {
        let mut timeline = Timeline::default();
        timeline.add("host", "start", 5, 6);
        for n in 0..40 {
            let mut exec = timeline.activity(format!("exec {n}"));
            exec.add("host", "work", n, n + 1);
            timeline.absorb(exec);
        }
        let spans = timeline.spans();
        assert_eq!(spans.len(), 1 + ACTIVITIES);
        assert_eq!((spans[0].activity.as_str(), spans[0].begin_ns), ("", 5));
        assert_eq!(spans[16].activity, "exec 39");
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
