//! `timeline`: where the time of a start went, and how much of it that explains;
//! then the same of what was done later. On one clock.

use std::process::ExitCode;

use anyhow::Result;
use casemate_protocol::monitor::TimelineSpan;
use casemate_sandbox::timeline::{Explained, Span};
use serde_json::json;

use crate::{
    arguments::{Format, Global, Timeline},
    client::{Monitor, Place, block_on},
};

/// The shortest stretch without a name that is worth a line, in nanoseconds.
const WORTH_A_LINE: u64 = 1_000_000;

/// Characters of the bar that stands for the whole.
const BAR: u64 = 40;

/// # Errors
/// When there is no such container, or its monitor is gone.
pub fn run(global: &Global, arguments: &Timeline) -> Result<ExitCode> {
    let place = Place::of(global, &arguments.id)?;
    place.state()?;
    let told = block_on(async { Monitor::connect(&place)?.timeline().await })?;
    let spans: Vec<Span> = told.spans.into_iter().map(span).collect();
    match arguments.format {
        Format::Json => print_json(&spans)?,
        Format::Table => print!("{}", text(&spans)),
    }
    Ok(ExitCode::SUCCESS)
}

fn span(told: TimelineSpan) -> Span {
    Span {
        part: told.part,
        name: told.name,
        begin_ns: told.begin_ns,
        end_ns: told.end_ns,
        activity: told.activity,
    }
}

fn print_json(spans: &[Span]) -> Result<()> {
    let list: Vec<_> = spans
        .iter()
        .map(|span| {
            json!({
                "part": span.part,
                "name": span.name,
                "beginNs": span.begin_ns,
                "endNs": span.end_ns,
                "activity": span.activity,
            })
        })
        .collect();
    let start = Explained::of(spans).map(|explained| {
        let gap = |(begin, end): &(u64, u64)| json!({ "beginNs": begin, "endNs": end });
        json!({
            "beginNs": explained.whole.0,
            "endNs": explained.whole.1,
            "explainedNs": explained.named_ns(),
            "gaps": explained.gaps.iter().map(gap).collect::<Vec<_>>(),
        })
    });
    let told = json!({ "clock": "CLOCK_MONOTONIC", "start": start, "spans": list });
    println!("{}", serde_json::to_string_pretty(&told)?);
    Ok(())
}

/// The start, then each of what was done later.
fn text(spans: &[Span]) -> String {
    let mut text = String::new();
    for spans in spans.chunk_by(|one, next| one.activity == next.activity) {
        match spans[0].activity.as_str() {
            "" => text += &(table(spans) + &explained(spans)),
            activity => text += &format!("\n{activity}\n{}", table(spans)),
        }
    }
    text
}

/// How much of the start has a name, and where the rest is.
fn explained(spans: &[Span]) -> String {
    let Some(explained) = Explained::of(spans) else {
        return String::new();
    };
    let (begin, whole) = (explained.whole.0, explained.whole_ns());
    let mut text = format!(
        "explained: {:.1} % of {}\n",
        explained.named_ns() as f64 * 100.0 / whole.max(1) as f64,
        milliseconds(whole),
    );
    let gaps = explained.gaps.iter();
    for (from, to) in gaps.filter(|(from, to)| to - from >= WORTH_A_LINE) {
        let (at, took) = (milliseconds(from - begin), milliseconds(to - from));
        text += &format!("{at:>9} {took:>9}  without a name\n");
    }
    text
}

/// One line a span: when it began, how long it took, and where that is.
fn table(spans: &[Span]) -> String {
    let Some(first) = spans.iter().map(|span| span.begin_ns).min() else {
        return String::new();
    };
    let last = spans.iter().map(|span| span.end_ns).max().unwrap_or(first);
    let whole = (last - first).max(1);
    let mut text = format!(
        "{:>9} {:>9}  {:<10} {:<28}\n",
        "BEGIN", "TOOK", "PART", "WHAT"
    );
    for span in spans {
        let (begin, end) = (span.begin_ns - first, span.end_ns - first);
        let from = (begin * BAR / whole).min(BAR - 1) as usize;
        let to = ((end * BAR).div_ceil(whole) as usize).max(from + 1);
        text += &format!(
            "{:>9} {:>9}  {:<10} {:<28} {}{}\n",
            milliseconds(begin),
            milliseconds(end - begin),
            span.part,
            span.name,
            " ".repeat(from),
            "#".repeat(to - from),
        );
    }
    text
}

fn milliseconds(ns: u64) -> String {
    format!("{:.1} ms", ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(part: &str, begin_ns: u64, end_ns: u64, activity: &str) -> Span {
        Span {
            part: part.into(),
            name: "work".into(),
            begin_ns,
            end_ns,
            activity: activity.into(),
        }
    }

    #[test]
    fn every_span_has_its_line_and_its_bar() {
        let text = table(&[
            span("host", 1_000_000, 3_000_000, ""),
            span("vmm", 3_000_000, 5_000_000, ""),
        ]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with(&"#".repeat(20)), "{text}");
        assert!(lines[2].contains("2.0 ms    2.0 ms"), "{text}");
        assert_eq!(super::text(&[]), "");
    }

    #[test]
    fn what_has_no_name_is_shown_after_the_start_and_later_things_follow() {
        let text = super::text(&[
            span("host", 1_000_000, 3_000_000, ""),
            span("vmm", 6_000_000, 9_000_000, ""),
            span("host", 60_000_000, 62_000_000, "exec 1"),
        ]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[3], "explained: 62.5 % of 8.0 ms");
        assert_eq!(lines[4], "   2.0 ms    3.0 ms  without a name");
        assert_eq!((lines[5], lines[6]), ("", "exec 1"));
        assert!(lines[8].ends_with(&"#".repeat(40)), "{text}");
    }
}
