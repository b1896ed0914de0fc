//! How much of a start its spans explain.

use super::Span;

/// The parts that the guest reports.
const OF_THE_GUEST: [&str; 3] = ["kernel", "agent", "container"];

/// The span that ends a start: the process has become its program.
const LAST: (&str, &str) = ("container", "exec");

/// What of a start has a name, and what has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// When the start began, and when the first container's process was its
    /// program; while that has not happened, when the last span ended.
    pub whole: (u64, u64),
    /// Stretches without a span, in order.
    pub gaps: Vec<(u64, u64)>,
}

impl Explained {
    /// Looks at the spans of a start; None when there are none.
    ///
    /// A span of the host in which the guest has spans is a wait: what was waited
    /// for explains the time, and the wait does not.
    pub fn of(spans: &[Span]) -> Option<Self> {
        let spans = spans.iter().filter(|span| span.activity.is_empty());
        let spans: Vec<&Span> = spans.collect();
        let begin = spans.iter().map(|span| span.begin_ns).min()?;
        let ends = |span: &&&Span| (span.part.as_str(), span.name.as_str()) == LAST;
        let last = spans.iter().filter(ends).map(|span| span.end_ns).min();
        let end = last.or_else(|| spans.iter().map(|span| span.end_ns).max())?;
        let mut named: Vec<(u64, u64)> = spans
            .iter()
            .filter(|span| !is_wait(span, &spans))
            .map(|span| (span.begin_ns, span.end_ns.min(end)))
            .collect();
        named.sort_unstable();
        let mut gaps = Vec::new();
        let mut until = begin;
        for (from, to) in named.into_iter().chain([(end, end)]) {
            if from > until {
                gaps.push((until, from.min(end)));
            }
            until = until.max(to);
        }
        gaps.retain(|(from, to)| from < to);
        Some(Self {
            whole: (begin, end),
            gaps,
        })
    }

    /// Nanoseconds that have a name.
    pub fn named_ns(&self) -> u64 {
        let gaps = self.gaps.iter().map(|(from, to)| to - from);
        self.whole_ns().saturating_sub(gaps.sum())
    }

    /// Nanoseconds of the whole start.
    pub fn whole_ns(&self) -> u64 {
        self.whole.1 - self.whole.0
    }
}

fn is_wait(span: &Span, all: &[&Span]) -> bool {
    let guest = |other: &&&Span| OF_THE_GUEST.contains(&other.part.as_str());
    span.part == "host"
        && (all.iter().filter(guest))
            .any(|other| span.begin_ns <= other.begin_ns && other.end_ns <= span.end_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(part: &str, name: &str, begin_ns: u64, end_ns: u64) -> Span {
        Span {
            part: part.into(),
            name: name.into(),
            begin_ns,
            end_ns,
            activity: String::new(),
        }
    }

    #[test]
    fn gaps_are_found_between_and_before_what_overlaps() {
        let spans = [
            span("host", "a", 10, 20),
            span("host", "b", 15, 30),
            span("vmm", "c", 40, 50),
        ];
        let explained = Explained::of(&spans).unwrap();
        assert_eq!(explained.whole, (10, 50));
        assert_eq!(explained.gaps, [(30, 40)]);
        assert_eq!((explained.named_ns(), explained.whole_ns()), (30, 40));
        assert_eq!(Explained::of(&[]), None);
    }

    #[test]
    fn a_wait_for_the_guest_explains_nothing() {
        let spans = [
            span("host", "wait for the agent", 0, 100),
            span("kernel", "boot", 30, 80),
        ];
        let explained = Explained::of(&spans).unwrap();
        assert_eq!(explained.gaps, [(0, 30), (80, 100)]);
    }

    #[test]
    fn a_start_ends_with_its_first_program() {
        let later = |span: Span| Span {
            activity: "exec 1".into(),
            ..span
        };
        let spans = [
            span("host", "a", 0, 10),
            span("container", "exec", 10, 20),
            span("host", "another container", 30, 90),
            later(span("container", "exec", 5, 7)),
        ];
        let explained = Explained::of(&spans).unwrap();
        assert_eq!((explained.whole, explained.gaps), ((0, 20), vec![]));
    }
}
