//! Text from the guest or from a program, made fit for a person's terminal.

/// The last `limit` characters of what was written, on one line, with nothing
/// in it that a terminal would obey.
pub(crate) fn printable(bytes: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    let skipped = text.chars().count().saturating_sub(limit);
    text.chars()
        .skip(skipped)
        .map(|character| match character {
            '\t' => ' ',
            harmless if !harmless.is_control() && !is_format(harmless) => harmless,
            _ => '\u{fffd}',
        })
        .collect()
}

/// The last line that says anything.
pub(crate) fn last_line(bytes: &[u8], limit: usize) -> Option<String> {
    bytes
        .split(|byte| matches!(byte, b'\n' | b'\r'))
        .rev()
        .map(|line| printable(line, limit))
        .find(|line| !line.is_empty())
}

/// Characters that reorder or hide others (Unicode's bidirectional controls and
/// zero-width ones).
fn is_format(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_as_a_command() {
        assert_eq!(
            printable(b"a\x1b[2Jb\tc\x07 \xff\n", 100),
            "a\u{fffd}[2Jb c\u{fffd} \u{fffd}"
        );
        assert_eq!(printable("x\u{202e}y".as_bytes(), 100), "x\u{fffd}y");
        assert_eq!(printable("0123456789äöü".as_bytes(), 5), "89äöü");
    }

    #[test]
    fn the_last_line_is_one_that_says_something() {
        assert_eq!(
            last_line(b"first\nsecond\r\n \n\n", 80).as_deref(),
            Some("second")
        );
        assert_eq!(last_line(b" \n\n", 80), None);
        assert_eq!(last_line(b"", 80), None);
    }
}
