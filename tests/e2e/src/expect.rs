//! Demands on what a program says.

use anyhow::{Context, Result, ensure};

use crate::command::Finished;

/// Demands one line of error that a person can act on, and gives it. A second
/// line may be a hint.
pub fn one_clear_line(finished: &Finished) -> Result<String> {
    let errors = finished.errors();
    let lines: Vec<&str> = errors
        .lines()
        .filter(|line| !line.starts_with("hint: "))
        .collect();
    ensure!(
        lines.len() == 1,
        "one line of error was expected\n{finished}"
    );
    let line = lines[0];
    ensure!(line.len() > 15, "the error says too little\n{finished}");
    ensure!(line.len() < 600, "the error says too much\n{finished}");
    ensure!(
        !line.contains("panicked"),
        "the program has panicked\n{finished}"
    );
    Ok(line.to_owned())
}

/// Demands that `text` contains `part`.
pub fn contains(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "{part:?} was expected in:\n{text}");
    Ok(())
}

/// Demands that two texts are equal and shows the lines that differ.
pub fn same(ours: &str, reference: &str) -> Result<()> {
    let missing: Vec<&str> = reference
        .lines()
        .filter(|l| !ours.lines().any(|o| o == *l))
        .collect();
    let surplus: Vec<&str> = ours
        .lines()
        .filter(|l| !reference.lines().any(|r| r == *l))
        .collect();
    ensure!(
        ours == reference,
        "it differs from the reference\n  only the reference has:\n    {}\n  only this has:\n    {}",
        missing.join("\n    "),
        surplus.join("\n    ")
    );
    Ok(())
}

/// The rest of the line that starts with `key`.
pub fn field<'t>(text: &'t str, key: &str) -> Result<&'t str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .map(str::trim)
        .with_context(|| format!("no line starts with {key:?} in:\n{text}"))
}

/// Demands the lines `1` to `20000` of `seq 1 20000` on a terminal; without `whole` the
/// end of them may be missing.
///
/// # Errors
/// The first line that is another one, or that is missing.
pub fn counted(bytes: &[u8], whole: bool) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    let text = match (whole, text.rfind('\n')) {
        (false, Some(end)) => &text[..end],
        _ => &text,
    };
    let mut numbers = 1..=20_000;
    for line in text.lines() {
        let (line, number) = (line.trim_end_matches('\r'), numbers.next());
        ensure!(
            number.is_some_and(|number| line == number.to_string()),
            "{line:?} came instead of {number:?}"
        );
    }
    let lost = numbers.next();
    ensure!(
        lost.is_none() || (!whole && lost > Some(1)),
        "{lost:?} and what follows is lost"
    );
    Ok(())
}
