//! A container's cgroup (v2): made with its limits before the first process is
//! born in it, killed and removed as a whole.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Seek, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use casemate_linux::{bpf, reactor::register};
use casemate_protocol::agent::{self, DeviceRule};
use tokio::io::Interest;

use crate::error::{Doing, Error, Result};

mod device_program;
mod spare;

pub(crate) use spare::Spare;

/// The files that say what a cgroup has used and may use.
const STATS: [&str; 19] = [
    "cpu.stat",
    "cpu.max",
    "hugetlb.1GB.current",
    "hugetlb.1GB.max",
    "hugetlb.2MB.current",
    "hugetlb.2MB.max",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.max",
    "memory.peak",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
    "pids.current",
    "pids.max",
    "cpu.pressure",
    "io.pressure",
    "memory.pressure",
];

/// Where boot mounts the hierarchy.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// Where the kernel tells what has become of a cgroup's processes.
const EVENTS: &str = "cgroup.events";

/// A cgroup that this agent has made.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: File,
    /// The device rules that its container wants are in force.
    guarded: bool,
}

impl Cgroup {
    /// Makes a cgroup with its settings; see [`Cgroup::guard`] for its device
    /// rules. Nothing of it is left when that fails; parents may stay.
    pub(crate) fn create(wanted: &agent::Cgroup) -> Result<Self> {
        let path = Path::new(ROOT).join(&wanted.path);
        make_parents(&path)?;
        fs::create_dir(&path).doing(|| format!("mkdir {}", path.display()))?;
        Self::set_up(&path, wanted).inspect_err(|_| {
            // Nobody has been in it: it goes at once.
            let _ = fs::remove_dir(&path);
        })
    }

    fn set_up(path: &Path, wanted: &agent::Cgroup) -> Result<Self> {
        let directory = File::open(path).doing(|| format!("open {}", path.display()))?;
        let cgroup = Self {
            path: path.to_owned(),
            directory,
            guarded: false,
        };
        cgroup.set(&wanted.settings)?;
        Ok(cgroup)
    }

    /// Sets what nobody has set before.
    fn set(&self, settings: &HashMap<String, String>) -> Result<()> {
        // In a fixed order, so that what fails always fails in the same way.
        for (name, value) in settings.iter().collect::<BTreeMap<_, _>>() {
            write(&self.path.join(name), value)
                .doing(|| format!("set {name} of the cgroup to {value:?}"))?;
        }
        Ok(())
    }

    /// Changes settings. When the kernel refuses one, those before it are put
    /// back.
    pub(crate) fn change(&self, settings: &HashMap<String, String>) -> Result<()> {
        let mut before: Vec<(PathBuf, String)> = Vec::new();
        for (name, value) in settings.iter().collect::<BTreeMap<_, _>>() {
            let path = self.path.join(name);
            let change = || {
                let old = fs::read_to_string(&path)?;
                write(&path, value)?;
                Ok(old)
            };
            let changed: io::Result<_> = change();
            match changed {
                Ok(old) => before.push((path, old)),
                Err(error) => {
                    for (path, old) in before.iter().rev() {
                        // It has been so a moment ago.
                        let _ = write(path, old.trim_end());
                    }
                    return Err(error).doing(|| format!("set {name} of the cgroup to {value:?}"));
                }
            }
        }
        Ok(())
    }

    /// Stops all processes in it, or lets them go on, and waits until that is
    /// so (cgroup-v2.rst, "cgroup.freeze").
    pub(crate) async fn freeze(&self, frozen: bool) -> Result<()> {
        let wanted = if frozen { "1" } else { "0" };
        write(&self.path.join("cgroup.freeze"), wanted)
            .doing(|| format!("write {wanted} to cgroup.freeze"))?;
        self.until(EVENTS, |events| value(events, "frozen") == Some(wanted))
            .await
            .doing(|| format!("wait for {} to stop or go on", self.path.display()))
    }

    /// What it has used, file by file.
    pub(crate) fn stats(&self) -> Result<HashMap<String, String>> {
        let mut files = HashMap::new();
        for name in STATS {
            match fs::read_to_string(self.path.join(name)) {
                Ok(text) => drop(files.insert(name.to_owned(), text)),
                // Not every kernel has every controller.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {}
                Err(error) => return Err(error).doing(|| format!("read {name} of the cgroup")),
            }
        }
        Ok(files)
    }

    /// Whether the device rules of its container are in force from the beginning.
    pub(crate) fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// Puts device rules in force, by the program that is returned.
    pub(crate) fn guard(&self, rules: &[DeviceRule]) -> Result<OwnedFd> {
        let program = device_program::compile(rules);
        let program = bpf::load_device_program(&program)
            .doing(|| "load the device program of the cgroup".into())?;
        bpf::attach_device_program(program.as_fd(), self.directory())
            .doing(|| "attach the device program to the cgroup".into())?;
        Ok(program)
    }

    /// Where a process has to be born that is to be beside `init`: the cgroup
    /// that init has moved to, when it has made this one a mere parent. (systemd
    /// does; cgroups with controllers have either processes or children.)
    pub(crate) fn beside(&self, init: u32) -> Result<Option<OwnedFd>> {
        let control = self.path.join("cgroup.subtree_control");
        let control = fs::read_to_string(control).doing(|| "read cgroup.subtree_control".into())?;
        if control.trim().is_empty() {
            return Ok(None);
        }
        let groups = fs::read_to_string(format!("/proc/{init}/cgroup"))
            .doing(|| "read the cgroup of the container's first process".into())?;
        let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else {
            return Ok(None);
        };
        let directory =
            File::open(Path::new(ROOT).join(path)).doing(|| format!("open the cgroup {path:?}"))?;
        Ok(Some(directory.into()))
    }

    /// For processes to be born in it.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Ids of all processes in it and below it.
    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        visit(&self.path, &mut |directory| {
            let procs = fs::read_to_string(directory.join("cgroup.procs"))?;
            // A process that this PID namespace cannot see is listed as 0.
            let listed = procs.lines().filter_map(|line| line.parse::<u32>().ok());
            pids.extend(listed.filter(|&pid| pid != 0));
            Ok(())
        })
        .doing(|| format!("list the processes of {}", self.path.display()))?;
        Ok(pids)
    }

    /// Kills every process in it, with no way to escape by forking.
    pub(crate) fn kill(&self) -> Result<()> {
        write(&self.path.join("cgroup.kill"), "1")
            .doing(|| format!("kill the processes of {}", self.path.display()))
    }

    /// The kernel has killed a process in it for want of memory.
    pub(crate) fn oom_killed(&self) -> bool {
        let Ok(events) = fs::read_to_string(self.path.join("memory.events")) else {
            // Without the memory controller nobody is killed by it.
            return false;
        };
        killed(&events)
    }

    /// Waits until no process is left in it.
    pub(crate) async fn empty(&self) -> Result<()> {
        self.until(EVENTS, |events| value(events, "populated") == Some("0"))
            .await
            .doing(|| format!("wait for {} to be empty", self.path.display()))
    }

    /// Waits until the kernel has killed a process in it for want of memory; for
    /// ever where it does not count that.
    pub(crate) async fn out_of_memory(&self) -> Result<()> {
        const COUNTS: &str = "memory.events";
        if !self.path.join(COUNTS).exists() {
            std::future::pending::<()>().await;
        }
        self.until(COUNTS, killed)
            .await
            .doing(|| format!("watch {}", self.path.display()))
    }

    /// Waits until one of its files of events says so.
    async fn until(&self, file: &str, says: impl Fn(&str) -> bool) -> io::Result<()> {
        // A change is told as an exceptional condition; reading through the
        // same descriptor arms the next one (cgroup-v2.rst, "[Un]populated
        // Notification").
        let mut events = File::open(self.path.join(file))?;
        let changes = register(events.try_clone()?.into(), Interest::PRIORITY)?;
        loop {
            events.rewind()?;
            let text = io::read_to_string(&events)?;
            if says(&text) {
                return Ok(());
            }
            changes.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }

    /// Kills what is left in it and removes it.
    pub(crate) async fn remove(&self) -> Result<()> {
        self.kill()?;
        self.empty().await?;
        let mut directories = Vec::new();
        visit(&self.path, &mut |directory| {
            directories.push(directory.to_owned());
            Ok(())
        })
        .doing(|| format!("list {}", self.path.display()))?;
        // The deepest first.
        for directory in directories.iter().rev() {
            fs::remove_dir(directory).doing(|| format!("rmdir {}", directory.display()))?;
        }
        Ok(())
    }
}

/// Makes the directories above a cgroup and hands every controller down to it.
fn make_parents(path: &Path) -> Result<()> {
    let below: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|ancestor| ancestor.starts_with(ROOT))
        .collect();
    for parent in below.into_iter().rev() {
        match fs::create_dir(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).doing(|| format!("mkdir {}", parent.display()));
            }
            _ => delegate(parent)?,
        }
    }
    Ok(())
}

/// Enables in the children of a cgroup what it has itself.
fn delegate(parent: &Path) -> Result<()> {
    let read = |name: &str| {
        let path = parent.join(name);
        fs::read_to_string(&path).doing(|| format!("read {}", path.display()))
    };
    let enabled = read("cgroup.subtree_control")?;
    let missing: Vec<String> = read("cgroup.controllers")?
        .split_whitespace()
        .filter(|name| !enabled.split_whitespace().any(|other| other == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let path = parent.join("cgroup.subtree_control");
    write(&path, &missing.join(" ")).doing(|| format!("write {}", path.display()))
}

/// Writes to an interface file, which must exist.
fn write(path: &Path, value: &str) -> io::Result<()> {
    File::options()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

/// Calls `act` for a cgroup and everything below it, parents first.
fn visit(path: &Path, act: &mut impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    act(path)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), act)?;
        }
    }
    Ok(())
}

/// Whether memory.events counts a process that was killed.
fn killed(events: &str) -> bool {
    value(events, "oom_kill").is_some_and(|count| count != "0")
}

/// The value of a key in a flat keyed file.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find_map(|(name, value)| (name == key).then_some(value))
}

/// Checks what the host asks for before anything is made of it.
pub(crate) fn validate(wanted: &agent::Cgroup) -> Result<()> {
    let path = Path::new(&wanted.path);
    let plain = path
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if wanted.path.is_empty() || !plain {
        return Err(Error::invalid(
            format!("cgroup path {:?}", wanted.path),
            "must be relative, without \"..\"",
        ));
    }
    if path.starts_with(spare::PATH) {
        return Err(Error::invalid(
            format!("cgroup path {:?}", wanted.path),
            "is the agent's own",
        ));
    }
    validate_settings(&wanted.settings)?;
    device_program::validate(&wanted.device_rules)
}

/// Checks the names of settings.
pub(crate) fn validate_settings(settings: &HashMap<String, String>) -> Result<()> {
    for name in settings.keys() {
        // "pids.max": a controller and its file; "cgroup." is the kernel's own.
        let known = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte));
        if !known || !name.contains('.') || name.starts_with('.') {
            return Err(Error::invalid(
                format!("cgroup setting {name:?}"),
                "is not the name of an interface file",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_keyed_files_are_read_by_whole_keys() {
        let events = "low 0\noom 4\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(value(events, "oom_kill"), Some("2"));
        assert_eq!(value(events, "oom_k"), None);
        assert!(killed(events) && !killed("oom 1\noom_kill 0\n") && !killed(""));
    }

    #[test]
    fn a_path_out_of_the_hierarchy_is_refused() {
        let with = |path: &str| agent::Cgroup {
            path: path.into(),
            ..Default::default()
        };
        assert!(validate(&with("docker/web")).is_ok());
        for path in ["", "/docker", "../x", "a/../../b", ".spare", ".spare/x"] {
            assert!(validate(&with(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn a_setting_is_a_file_of_the_cgroup() {
        let with = |name: &str| agent::Cgroup {
            path: "web".into(),
            settings: [(name.to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        assert!(validate(&with("hugetlb.2MB.max")).is_ok());
        for name in ["max", "../pids.max", "a/pids.max", ".."] {
            assert!(validate(&with(name)).is_err(), "{name}");
        }
    }
}
