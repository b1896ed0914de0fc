//! One run of the suite: its folder, and the processes of its scenarios.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libtest_mimic::{Completion, Failed};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::child::FOLDERS;
use super::{SKIPPED, TRIAL};
use crate::host::cgroup_of;
use crate::{cgroups, mounts, processes};

/// How long a scenario's process has for its report after its time limit.
const GRACE: Duration = Duration::from_secs(15);

pub(super) type Judgement = Result<Completion, Failed>;

pub(super) struct Run {
    folder: PathBuf,
    number: AtomicU32,
    /// The processes of scenarios; any other child is an orphan of one that
    /// ended. Held while a process starts, so that none is taken for an orphan.
    live: Mutex<HashSet<i32>>,
}

impl Run {
    pub(super) fn new() -> Result<Run> {
        nix::sys::prctl::set_child_subreaper(true).context("become the subreaper")?;
        let folder = tempfile::Builder::new().prefix("cme").tempdir();
        let folder = folder.context("a temporary folder")?.keep();
        fs::create_dir(folder.join("shared"))?;
        Ok(Run {
            folder,
            number: AtomicU32::new(0),
            live: Mutex::default(),
        })
    }

    /// Makes the folder of one scenario.
    pub(super) fn place(&self, name: &str) -> Result<PathBuf> {
        let dir = self.folder.join(name);
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir)
    }

    /// The folder of what the scenarios share.
    pub(super) fn shared(&self) -> PathBuf {
        self.folder.join("shared")
    }

    /// Runs one trial in its process.
    pub(super) fn execute(&self, name: &str, limit: Duration) -> Result<Judgement> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let dir = self.place(&number.to_string())?;
        let output = self.folder.join(format!("{number}.out"));
        let mut child = self.spawn(name, &dir, &output)?;
        let status = wait(&mut child, limit + GRACE)?;
        self.live().remove(&(child.id() as i32));
        self.end_orphans();
        let said = String::from_utf8_lossy(&fs::read(&output)?)
            .trim_end()
            .to_owned();
        cgroups::remove(&cgroup_of(&dir));
        // The mounts below it went away with the scenario's mount namespace.
        fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(judge(status, said))
    }

    fn spawn(&self, name: &str, dir: &Path, output: &Path) -> Result<Child> {
        let out = File::create(output).with_context(|| output.display().to_string())?;
        let err = out.try_clone()?;
        let mut live = self.live();
        let child = Command::new(std::env::current_exe()?)
            .env(TRIAL, name)
            .env(FOLDERS[0], dir)
            .env(FOLDERS[1], self.shared())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .context("start the scenario's process")?;
        live.insert(child.id() as i32);
        Ok(child)
    }

    /// Kills what a scenario's process could not.
    fn end_orphans(&self) {
        loop {
            let live = self.live();
            let own = std::process::id() as i32;
            let mut orphans = processes::all();
            orphans.retain(|process| process.parent == own && !live.contains(&process.pid));
            if orphans.is_empty() {
                return;
            }
            for orphan in orphans {
                // It may have ended; the next round sees its children.
                let _ = orphan.kill();
                let _ = waitpid(Pid::from_raw(orphan.pid), None);
            }
        }
    }

    /// Ends the scenarios that run and removes all the run has, for the end of
    /// this process.
    pub(super) fn abort(&self) {
        // Kept to the end: no scenario starts any more.
        let live = self.live();
        loop {
            let mut running = processes::ours();
            if running.is_empty() {
                break;
            }
            // From above, so that nobody reacts to the death of another.
            running.sort_by_key(|process| !live.contains(&process.pid));
            for process in running {
                // It may have ended by itself meanwhile.
                let _ = process.kill();
            }
            sleep(Duration::from_millis(20));
        }
        for number in 0..self.number.load(Ordering::Relaxed) {
            cgroups::remove(&cgroup_of(&self.folder.join(number.to_string())));
        }
        for line in self.finish() {
            eprintln!("left behind: {line}");
        }
        std::mem::forget(live);
    }

    /// Removes the run's folder and says what is left beside it.
    pub(super) fn finish(&self) -> Vec<String> {
        let mut found: Vec<String> = processes::ours().iter().map(ToString::to_string).collect();
        let name = self
            .folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let groups = cgroups::find(|path| path.to_string_lossy().contains(&*name));
        found.extend(
            groups
                .iter()
                .map(|group| format!("cgroup {}", group.display())),
        );
        let mut mounts = mounts::own().unwrap_or_default();
        mounts.retain(|mount| Path::new(&mount.point).starts_with(&self.folder));
        found.extend(mounts.iter().map(|mount| format!("mount {}", mount.point)));
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            found.push(format!("{}: {error}", self.folder.display()));
        }
        found
    }

    fn live(&self) -> MutexGuard<'_, HashSet<i32>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None if it had to be killed.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

fn judge(status: Option<ExitStatus>, said: String) -> Judgement {
    match status.map(|status| status.code()) {
        Some(Some(0)) => Ok(Completion::Completed),
        Some(Some(SKIPPED)) => {
            let why = said.lines().last().unwrap_or_default();
            Ok(Completion::ignored_with(why))
        }
        Some(Some(_)) => Err(Failed::from(said)),
        Some(None) => Err(Failed::from(format!(
            "a signal ended the scenario's process\n{said}"
        ))),
        None => Err(Failed::from(format!(
            "the scenario's process had to be killed\n{said}"
        ))),
    }
}
