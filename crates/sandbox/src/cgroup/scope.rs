//! The systemd driver's cgroups: a scope, which systemd makes and which goes
//! with its last process.
//!
//! `linux.cgroupsPath` is `slice:prefix:name` then (as runc has it), which means
//! the unit `prefix-name.scope` below a slice.

use std::{fs, io, path::Path, path::PathBuf, thread, time::Duration, time::Instant};

use super::bus::{self, Property, Value};

/// Where containers are whose client names no slice.
const DEFAULT_SLICE: &str = "system.slice";

/// What there is where systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// How long systemd may take to make a scope.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked for.
const PAUSE: Duration = Duration::from_millis(2);

/// A scope, whether it is there or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    slice: String,
    pub(super) unit: String,
}

impl Scope {
    /// Reads `slice:prefix:name`; nothing for a text that is no such thing.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
        let slice = if slice.is_empty() {
            DEFAULT_SLICE
        } else {
            slice
        };
        let unit = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        let plain = |text: &str| !text.contains('/') && !text.is_empty();
        let fits = parts.next().is_none() && plain(name) && plain(slice) && plain(&unit);
        let scope = Self {
            slice: slice.to_owned(),
            unit,
        };
        (fits && expand(slice).is_some()).then_some(scope)
    }

    /// Its cgroup, relative to the root of a hierarchy.
    pub(super) fn path(&self) -> PathBuf {
        expand(&self.slice).unwrap_or_default().join(&self.unit)
    }

    /// Has systemd make it, with a first process, which it cannot be without.
    ///
    /// # Errors
    /// When systemd refuses or does not do it in time.
    pub(super) fn start(&self, first: u32) -> Result<(), bus::Error> {
        let mut properties: Vec<Property> = vec![
            (
                "Description",
                Value::Text(format!("casemate {}", self.unit)),
            ),
            ("Slice", Value::Text(self.slice.clone())),
            ("Delegate", Value::Flag(true)),
            ("DefaultDependencies", Value::Flag(false)),
            ("PIDs", Value::Processes(vec![first])),
        ];
        // The controllers that limits are set with and figures read from.
        let accounting = [
            "CPUAccounting",
            "MemoryAccounting",
            "TasksAccounting",
            "IOAccounting",
        ];
        properties.extend(accounting.map(|name| (name, Value::Flag(true))));
        bus::start_unit(&self.unit, &properties)?;
        let begin = Instant::now();
        while !self.has(first)? {
            if begin.elapsed() > PATIENCE {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Whether a process is in it.
    fn has(&self, pid: u32) -> io::Result<bool> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        Ok(groups
            .lines()
            .any(|line| Path::new(line).ends_with(&self.unit)))
    }

    /// Tells systemd of limits that have files, which it would take back when it
    /// is reloaded.
    ///
    /// # Errors
    /// When it refuses.
    pub(super) fn limit(&self, settings: &[(&'static str, String)]) -> Result<(), bus::Error> {
        let properties: Vec<_> = settings
            .iter()
            .filter_map(|(file, value)| property(file, value))
            .collect();
        match properties.is_empty() {
            true => Ok(()),
            false => bus::set_properties(&self.unit, &properties),
        }
    }
}

/// Whether systemd is there to make one.
pub fn is_available() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Ends what is left of a scope.
///
/// # Errors
/// When systemd is there and does not.
pub(crate) fn stop(unit: &str) -> io::Result<()> {
    match is_available() {
        true => bus::stop_unit(unit).map_err(io::Error::other),
        false => Ok(()),
    }
}

/// The path of a slice: each dash is a level (systemd.slice(5)).
fn expand(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut level = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        level = match level.as_str() {
            "" => part.to_owned(),
            above => format!("{above}-{part}"),
        };
        path.push(format!("{level}.slice"));
    }
    Some(path)
}

/// systemd's name for what an interface file of cgroup v2 says
/// (systemd.resource-control(5)).
fn property(file: &str, value: &str) -> Option<Property> {
    match file {
        "memory.max" => Some((
            "MemoryMax",
            Value::Number(value.parse().unwrap_or(u64::MAX)),
        )),
        "cpu.weight" => Some(("CPUWeight", Value::Number(value.parse().ok()?))),
        "cpu.max" => {
            let (quota, period) = value.split_once(' ')?;
            let period: u64 = period.parse().ok().filter(|period| *period > 0)?;
            // Microseconds in a second.
            let share = quota
                .parse::<u64>()
                .ok()
                .map(|quota| quota * 1_000_000 / period);
            Some((
                "CPUQuotaPerSecUSec",
                Value::Number(share.unwrap_or(u64::MAX)),
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Option<String> {
        let scope = Scope::parse(text)?;
        Some(scope.path().to_string_lossy().into_owned())
    }

    #[test]
    fn a_unit_is_found_below_its_slices() {
        for (text, expected) in [
            ("machine.slice:libpod:abc", "machine.slice/libpod-abc.scope"),
            (":docker:abc", "system.slice/docker-abc.scope"),
            (
                "a-b-c.slice::abc",
                "a.slice/a-b.slice/a-b-c.slice/abc.scope",
            ),
            ("-.slice:x:abc", "x-abc.scope"),
        ] {
            assert_eq!(path(text).as_deref(), Some(expected));
        }
        for text in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "a:b:c",
            "a.slice:b:",
            "a--b.slice:c:d",
            "a.slice:b/..:c",
            "../a.slice:b:c",
        ] {
            assert_eq!(path(text), None, "{text}");
        }
    }

    #[test]
    fn limits_have_names_in_systemd() {
        let number = |file, value| match property(file, value) {
            Some((name, Value::Number(number))) => Some((name, number)),
            _ => None,
        };
        assert_eq!(number("memory.max", "4096"), Some(("MemoryMax", 4096)));
        assert_eq!(number("memory.max", "max"), Some(("MemoryMax", u64::MAX)));
        let half = Some(("CPUQuotaPerSecUSec", 500_000));
        assert_eq!(number("cpu.max", "50000 100000"), half);
        let all = Some(("CPUQuotaPerSecUSec", u64::MAX));
        assert_eq!(number("cpu.max", "max 100000"), all);
        assert_eq!(number("cpu.shares", "2"), None);
    }

    /// With the systemd of this machine, where there is one.
    #[test]
    fn systemd_makes_a_scope_that_goes_with_its_process() {
        if !is_available() || !nix::unistd::geteuid().is_root() {
            return println!("skipped: needs root and systemd");
        }
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let scope = Scope::parse(&format!(":casemate:test{}", child.id())).unwrap();
        scope.start(child.id()).unwrap();
        scope
            .limit(&[
                ("memory.max", "104857600".to_owned()),
                ("cpu.weight", "50".to_owned()),
            ])
            .unwrap();
        let group = Path::new("/sys/fs/cgroup").join(scope.path());
        if let Ok(limit) = fs::read_to_string(group.join("memory.max")) {
            assert_eq!(limit, "104857600\n");
        }
        let twice = scope.start(child.id()).unwrap_err();
        assert!(matches!(twice, bus::Error::Refused { .. }), "{twice}");
        child.kill().unwrap();
        child.wait().unwrap();
        let begin = Instant::now();
        while group.exists() && begin.elapsed() < PATIENCE {
            thread::sleep(PAUSE);
        }
        assert!(!group.exists());
        stop(&scope.unit).unwrap();
    }
}
