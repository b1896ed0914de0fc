//! The log of a container: CRI's logging format, design proposal
//! `kubelet-cri-logging` of Kubernetes.

use anyhow::{Context, Result, bail};

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it came, RFC 3339 with nanoseconds.
    pub time: String,
    /// Whether it came on stderr.
    pub is_error: bool,
    /// Whether it goes on in the next line.
    pub is_partial: bool,
    /// What was written, without the line's end.
    pub text: String,
}

impl Line {
    pub(super) fn parse(line: &str) -> Result<Line> {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().with_context(|| format!("log line {line:?}"));
        let (time, stream, tag, text) = (word()?, word()?, word()?, word()?);
        let choice = |word: &str, no: &str, yes: &str| match word {
            _ if word == no => Ok(false),
            _ if word == yes => Ok(true),
            _ => bail!("{word} in log line {line:?}"),
        };
        Ok(Line {
            time: time.to_owned(),
            is_error: choice(stream, "stdout", "stderr")?,
            is_partial: choice(tag, "F", "P")?,
            text: text.to_owned(),
        })
    }
}
