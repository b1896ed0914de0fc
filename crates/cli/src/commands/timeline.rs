//! `timeline`: where the time of a start went, on one clock.

use std::process::ExitCode;

use anyhow::Result;
use casemate_protocol::monitor::TimelineSpan;
use serde_json::json;

use crate::{
    arguments::{Format, Global, Timeline},
    client::{Monitor, Place, block_on},
};

/// Characters of the bar that stands for the whole start.
const BAR: u64 = 40;

/// # Errors
/// When there is no such container, or its monitor is gone.
pub fn run(global: &Global, arguments: &Timeline) -> Result<ExitCode> {
    let place = Place::of(global, &arguments.id)?;
    place.state()?;
    let spans = block_on(async { Monitor::connect(&place)?.timeline().await })?.spans;
    match arguments.format {
        Format::Json => print_json(&spans)?,
        Format::Table => print!("{}", table(&spans)),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_json(spans: &[TimelineSpan]) -> Result<()> {
    let list: Vec<_> = spans
        .iter()
        .map(|span| {
            json!({
                "part": span.part,
                "name": span.name,
                "beginNs": span.begin_ns,
                "endNs": span.end_ns,
            })
        })
        .collect();
    println!(
        "{}",
        serde_json::to_string_pretty(&json!({ "clock": "CLOCK_MONOTONIC", "spans": list }))?
    );
    Ok(())
}

/// One line a span: when it began, how long it took, and where that is.
fn table(spans: &[TimelineSpan]) -> String {
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

    #[test]
    fn every_span_has_its_line_and_its_bar() {
        let span = |part: &str, begin_ns, end_ns| TimelineSpan {
            part: part.into(),
            name: "work".into(),
            begin_ns,
            end_ns,
            ..Default::default()
        };
        let text = table(&[
            span("host", 1_000_000, 3_000_000),
            span("vmm", 3_000_000, 5_000_000),
        ]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with(&"#".repeat(20)), "{text}");
        assert!(lines[2].contains("2.0 ms    2.0 ms"), "{text}");
        assert_eq!(table(&[]), "");
    }
}
