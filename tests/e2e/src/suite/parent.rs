//! The process that starts the scenarios' processes and counts.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tempfile::TempDir;

use super::child::FOLDERS;
use super::{Module, SKIPPED, TRIAL, trial_name};
use crate::runtime::{Kind, Runtime};
use crate::scenario::Scenario;
use crate::{cgroups, processes};

/// More than one scenario at a time only as far as starts by emulation do not
/// starve each other.
const THREADS: usize = 2;

/// How long a scenario's process has for its report after its time limit.
const GRACE: Duration = Duration::from_secs(15);

pub(super) fn main(modules: Vec<Module>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let run = match Run::new() {
        Ok(run) => Arc::new(run),
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let conclusion = libtest_mimic::run(&arguments, trials(&run, modules));
    let left = run.leftovers();
    for line in &left {
        println!("left behind: {line}");
    }
    if left.is_empty() { conclusion.exit_code() } else { ExitCode::FAILURE }
}

fn trials(run: &Arc<Run>, modules: Vec<Module>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (module, scenarios) in modules {
        for scenario in scenarios {
            for kind in Kind::ALL {
                let name = trial_name(kind, module, &scenario);
                trials.push(trial(Arc::clone(run), kind, name, &scenario));
            }
        }
    }
    trials
}

fn trial(run: Arc<Run>, kind: Kind, name: String, scenario: &Scenario) -> Trial {
    let (only_vm, limit) = (scenario.only_vm, scenario.limit);
    Trial::ignorable_test(name.clone(), move || {
        let skipped = |why: &str| Ok(Completion::ignored_with(format!("skipped: {why}")));
        match (kind, only_vm, Runtime::find(kind)) {
            (Kind::Runc, Some(reason), _) => skipped(reason),
            (Kind::Runc, None, Err(why)) => skipped(&why),
            // The runtime under test must be there.
            (Kind::Casemate, _, Err(why)) => Err(Failed::from(why)),
            (_, _, Ok(_)) => run.execute(&name, limit).map_err(|e| Failed::from(format!("{e:#}")))?,
        }
    })
}

/// One run of the suite.
struct Run {
    folder: TempDir,
    number: AtomicU32,
    /// The processes of scenarios; any other child is an orphan of one that
    /// ended. Held while a process starts, so that none is taken for an orphan.
    live: Mutex<HashSet<i32>>,
}

type Judgement = Result<Completion, Failed>;

impl Run {
    fn new() -> Result<Run> {
        nix::sys::prctl::set_child_subreaper(true).context("become the subreaper")?;
        let folder = tempfile::Builder::new().prefix("cme").tempdir().context("a temporary folder")?;
        fs::create_dir(folder.path().join("shared"))?;
        Ok(Run { folder, number: AtomicU32::new(0), live: Mutex::default() })
    }

    /// Runs one trial in its process.
    fn execute(&self, name: &str, limit: Duration) -> Result<Judgement> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let dir = self.folder.path().join(number.to_string());
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let output = self.folder.path().join(format!("{number}.out"));
        let mut child = self.spawn(name, &dir, &output)?;
        let status = wait(&mut child, limit + GRACE)?;
        self.live().remove(&(child.id() as i32));
        self.end_orphans();
        let said = String::from_utf8_lossy(&fs::read(&output)?).trim_end().to_owned();
        cgroups::remove(&self.cgroup(&dir));
        remove(&dir)?;
        Ok(judge(status, said))
    }

    fn spawn(&self, name: &str, dir: &Path, output: &Path) -> Result<Child> {
        let out = File::create(output).with_context(|| output.display().to_string())?;
        let err = out.try_clone()?;
        let mut live = self.live();
        let child = Command::new(std::env::current_exe()?)
            .env(TRIAL, name)
            .env(FOLDERS[0], dir)
            .env(FOLDERS[1], self.folder.path().join("shared"))
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
                // The next round sees whether it has ended.
                let _ = orphan.kill();
                let _ = waitpid(Pid::from_raw(orphan.pid), None);
            }
        }
    }

    /// The cgroup of the scenario with this folder, named as `Host` does it.
    fn cgroup(&self, dir: &Path) -> String {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("{}-{}", name(self.folder.path()), name(dir))
    }

    /// What is left of the whole run.
    fn leftovers(&self) -> Vec<String> {
        let mine = self.folder.path().to_string_lossy().into_owned();
        let prefix = mine.rsplit('/').next().unwrap_or_default().to_owned();
        let mut found: Vec<String> = processes::ours().iter().map(ToString::to_string).collect();
        found.extend(cgroups::find(|path| path.to_string_lossy().contains(&prefix)).iter().map(|p| p.display().to_string()));
        let mounts = crate::mounts::own().unwrap_or_default();
        found.extend(mounts.iter().filter(|m| m.point.starts_with(&mine)).map(|m| m.point.clone()));
        found
    }

    fn live(&self) -> MutexGuard<'_, HashSet<i32>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
        Some(Some(SKIPPED)) => Ok(Completion::ignored_with(said.lines().last().unwrap_or_default())),
        Some(Some(_)) => Err(Failed::from(said)),
        Some(None) => Err(Failed::from(format!("a signal ended the scenario's process\n{said}"))),
        None => Err(Failed::from(format!("the scenario's process had to be killed\n{said}"))),
    }
}

/// The mounts below it went away with the scenario's mount namespace.
fn remove(dir: &PathBuf) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| dir.display().to_string())
}
