//! Making the kernel give notice that a cgroup is out of memory.
//!
//! A process of ours enters the cgroup, the limit is set to what is in use, and
//! the process takes more. What follows differs:
//!
//! * **v1**: killing is switched off meanwhile (`memory.oom_control`): the kernel
//!   gives notice and lets the process wait. It is ended, and all is as before.
//! * **v2**: the notice is about a kill, so our process is killed. It asks to be
//!   the victim and the others ask not to be, which needs CAP_SYS_RESOURCE.
//!
//! Whoever else needs memory in the cgroup waits for that moment.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use casemate_linux::{
    process::{Birth, Child, Exit, spawn},
    reactor::register_readable,
};
use nix::sys::{prctl::set_pdeathsig, signal::Signal};
use tokio::time::{Instant, sleep, timeout};

/// How much the process takes at most, over what the kernel can reclaim in the
/// cgroup, and how long it may live.
const MOST: usize = 128 << 20;
const LIFE: Duration = Duration::from_secs(2);

/// How often it is looked whether the kernel has given notice.
const PAUSE: Duration = Duration::from_millis(1);

/// Room that is left to the cgroup for the moment, in bytes.
const MARGIN: u64 = 1 << 20;

/// Never to be killed (proc(5), oom_score_adj), and always first.
const NEVER: &str = "-1000";
const FIRST: &str = "1000";

/// Has the kernel give notice to who watches the memory cgroup at `directory`.
///
/// # Errors
/// When it does not, or a setting cannot be made; all is as before then.
pub(super) async fn provoke(directory: &Path) -> io::Result<()> {
    match directory.join("memory.oom_control").exists() {
        true => on_v1(directory).await,
        false => on_v2(directory).await,
    }
}

async fn on_v1(directory: &Path) -> io::Result<()> {
    let control = directory.join("memory.oom_control");
    let (eater, mut word) = enter(directory)?;
    let work = async {
        let killing = read(&control)?;
        let killing = value(&killing, "oom_kill_disable").unwrap_or("0");
        let _killing = Setting::change(&control, "1", killing)?;
        let swap = directory.join("memory.swappiness");
        let _swap = read(&swap).and_then(|old| Setting::change(&swap, "0", &old));
        let limit = directory.join("memory.limit_in_bytes");
        let lower = in_use(&directory.join("memory.usage_in_bytes"))? + MARGIN;
        let _limit = Setting::change(&limit, &lower.to_string(), &read(&limit)?)?;
        word.write_all(&[1])?;
        let begin = Instant::now();
        while value(&read(&control)?, "under_oom") != Some("1") {
            if begin.elapsed() > LIFE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            sleep(PAUSE).await;
        }
        // Before the limit is back: it waits and takes nothing more.
        eater.signal(libc::SIGKILL)
    };
    let noticed = work.await;
    eater.signal(libc::SIGKILL)?;
    eater.wait()?;
    noticed
}

async fn on_v2(directory: &Path) -> io::Result<()> {
    let procs = directory.join("cgroup.procs");
    let mut spared = Vec::new();
    for pid in read(&procs)?.lines() {
        let path = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
        // One that has ended meanwhile needs no protection.
        if let Ok(old) = read(&path) {
            spared.push(Setting::change(&path, NEVER, &old)?);
        }
    }
    let (eater, mut word) = enter(directory)?;
    let work = async {
        let swap = directory.join("memory.swap.max");
        let _swap = read(&swap).and_then(|old| Setting::change(&swap, "0", &old));
        let limit = directory.join("memory.max");
        let lower = in_use(&directory.join("memory.current"))? + MARGIN;
        let _limit = Setting::change(&limit, &lower.to_string(), &read(&limit)?)?;
        word.write_all(&[1])?;
        let ended = register_readable(eater.pidfd().try_clone_to_owned()?)?;
        let _ = timeout(LIFE, ended.readable()).await;
        Ok(())
    };
    let worked: io::Result<()> = work.await;
    // Unless it was killed already, it did not help.
    let alive = eater.signal(libc::SIGTERM);
    let exit = eater.wait()?;
    worked.and(alive)?;
    match exit {
        Exit::Signal(libc::SIGKILL) => Ok(()),
        exit => Err(io::Error::other(format!("memory did not run out: {exit}"))),
    }
}

/// A process that takes memory in the cgroup when it is told to.
fn enter(directory: &Path) -> io::Result<(Child, impl Write)> {
    let (mut words, word) = io::pipe()?;
    let eater = spawn(Birth::default(), || eat(&mut words).map_or(1, |()| 0))?;
    let pid = eater.pid().to_string();
    if let Err(error) = fs::write(directory.join("cgroup.procs"), pid) {
        eater.signal(libc::SIGKILL)?;
        eater.wait()?;
        return Err(error);
    }
    Ok((eater, word))
}

fn eat(words: &mut impl Read) -> io::Result<()> {
    // It has a copy of the other end, so it would never see that close.
    set_pdeathsig(Signal::SIGKILL)?;
    casemate_linux::disposition::reset_all();
    fs::write("/proc/self/oom_score_adj", FIRST)?;
    words.read_exact(&mut [0])?;
    let mut hoard = Vec::new();
    while hoard.len() < MOST >> 20 {
        hoard.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
    Ok(())
}

/// A setting that gets its old value back when dropped.
struct Setting {
    path: PathBuf,
    old: String,
}

impl Setting {
    fn change(path: &Path, new: &str, old: &str) -> io::Result<Self> {
        fs::write(path, new)?;
        Ok(Self {
            path: path.to_owned(),
            old: old.to_owned(),
        })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.old) {
            tracing::warn!(path = %self.path.display(), %error, "stays changed");
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

fn in_use(path: &Path) -> io::Result<u64> {
    read(path)?.parse().map_err(io::Error::other)
}

/// A value of a flat keyed file.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{self, Cgroup};

    /// In a cgroup of the test's own, where this machine lets it make one.
    #[test]
    fn the_kernel_gives_notice_and_all_is_as_before() {
        let name = format!("casemate-test-oom-{}", std::process::id());
        let group = Cgroup::locate(Path::new(&name)).unwrap();
        let Some(directory) = group.memory() else {
            return println!("skipped: no memory controller");
        };
        if fs::create_dir(directory).is_err() {
            return println!("skipped: a cgroup needs root");
        }
        let limits = ["memory.limit_in_bytes", "memory.max"].map(|name| directory.join(name));
        let before = limits.each_ref().map(|path| read(path).ok());
        let (failures, control) = ("memory.failcnt", "memory.oom_control");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let provoked = runtime.block_on(provoke(directory));
        let after = limits.each_ref().map(|path| read(path).ok());
        let failed = read(&directory.join(failures)).is_ok_and(|count| count != "0");
        let killed = read(&directory.join("memory.events"));
        let killed = killed.is_ok_and(|text| value(&text, "oom_kill") == Some("1"));
        let control = read(&directory.join(control)).unwrap_or_default();
        let still = value(&control, "oom_kill_disable").is_some_and(|off| off != "0");
        cgroup::remove(directory).unwrap();
        provoked.unwrap();
        assert!(failed || killed);
        assert!(!still);
        assert_eq!(before, after);
    }
}
