//! Mounts as `/proc/self/mountinfo` shows them.

use std::fs;

use anyhow::{Context, Result};

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What of the file system is mounted.
    pub root: String,
    /// Where.
    pub point: String,
    /// The options of the mount: `ro`, `nosuid`, …
    pub options: Vec<String>,
    /// The type of the file system.
    pub kind: String,
    /// What is mounted, as the file system calls it.
    pub source: String,
    /// The options of the file system: `size=…`, `mode=…`
    pub super_options: Vec<String>,
}

/// Reads a mountinfo file: proc(5).
pub fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let words = |list: &str| list.split(',').map(str::to_owned).collect();
    Some(Mount {
        root: (*left.get(3)?).to_owned(),
        point: (*left.get(4)?).to_owned(),
        options: words(left.get(5)?),
        kind: (*right.first()?).to_owned(),
        source: (*right.get(1)?).to_owned(),
        super_options: words(right.get(2)?),
    })
}

/// The mounts of this process.
pub fn own() -> Result<Vec<Mount>> {
    read("/proc/self/mountinfo")
}

/// The mounts of another process.
pub fn of(pid: i32) -> Result<Vec<Mount>> {
    read(&format!("/proc/{pid}/mountinfo"))
}

fn read(path: &str) -> Result<Vec<Mount>> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    Ok(parse(&text))
}
