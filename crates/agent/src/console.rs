//! The agent's few words on its console (standard error of PID 1), which the
//! host keeps as a bounded log. Nothing is said when all is well.

use std::{
    fmt,
    io::{self, Write},
};

/// One line. A console that cannot be written to is no reason to stop.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "casemate-agent: {line}");
}
