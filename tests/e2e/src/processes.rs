//! Processes as `/proc` shows them.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// The letter of its state, as in ps: `Z` has ended and is not reaped yet.
    pub state: char,
    /// Its command line; its name in brackets if it has none.
    pub argv: Vec<String>,
}

impl Process {
    /// Whether any word of the command line is `word`.
    pub fn has_word(&self, word: &str) -> bool {
        self.argv.iter().any(|argument| argument == word)
    }

    /// The file name of the program.
    pub fn program(&self) -> &str {
        let path = self.argv.first().map_or("", String::as_str);
        path.rsplit('/').next().unwrap_or(path)
    }

    /// Whether it has ended.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Kills it with signal 9.
    pub fn kill(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).with_context(|| format!("kill {self}"))
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.argv.join(" ");
        write!(f, "process {} ({}) ", self.pid, self.state)?;
        f.write_str(line.get(..300).unwrap_or(&line))
    }
}

/// Process `pid`, if there is one.
pub fn get(pid: i32) -> Option<Process> {
    let folder = Path::new("/proc").join(pid.to_string());
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // The name is in parentheses and may itself hold some: proc(5).
    let (head, tail) = stat.rsplit_once(')')?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let line = fs::read(folder.join("cmdline")).unwrap_or_default();
    let mut argv: Vec<String> = line
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    argv.pop();
    if argv.is_empty() {
        let name = head.split_once('(').map_or(head, |(_, name)| name);
        argv.push(format!("[{name}]"));
    }
    Some(Process {
        pid,
        parent,
        state,
        argv,
    })
}

/// Every process.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| get(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// Every process below `root`, in no order.
pub fn descendants(root: i32) -> Vec<Process> {
    let mut rest = all();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        let (children, others): (Vec<_>, Vec<_>) = rest
            .into_iter()
            .partition(|process| process.parent == parent);
        rest = others;
        parents.extend(children.iter().map(|child| child.pid));
        found.extend(children);
    }
    found
}

/// Everything this process has started that still runs.
pub fn ours() -> Vec<Process> {
    let mut found = descendants(std::process::id() as i32);
    found.retain(|process| !process.is_dead());
    found
}

/// The processes that hold an open descriptor of the file `inode` names, which
/// is written as in `/proc/PID/fd`: `pipe:[1234]`.
pub fn holders(inode: &str) -> Vec<Process> {
    let own = std::process::id() as i32;
    let holds = |process: &Process| {
        let folder = format!("/proc/{}/fd", process.pid);
        let Ok(entries) = fs::read_dir(folder) else {
            return false;
        };
        entries
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|target| target.as_os_str() == inode)
    };
    let mut found = all();
    found.retain(|process| process.pid != own && holds(process));
    found
}
