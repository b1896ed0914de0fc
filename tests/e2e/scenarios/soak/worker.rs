//! One of those that work at a time: it has at most one container, and uses the steady one.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::processes::{self, Process};
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Command, Host, Podman};

/// As long as a command may take, with all the others at work.
const LIMIT: Duration = Duration::from_secs(180);

/// Ends at once when it is asked to, with a status of its own, once it has said that it is ready.
const PROGRAM: &str = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";

/// SplitMix64: the same numbers everywhere for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub(super) struct Worker<'w> {
    host: &'w Host,
    podman: &'w Podman<'w>,
    steady: &'w str,
    number: u64,
    /// Its own container, while it has one.
    own: Option<String>,
}

impl<'w> Worker<'w> {
    pub(super) fn new(
        host: &'w Host,
        podman: &'w Podman<'w>,
        steady: &'w str,
        number: u64,
    ) -> Worker<'w> {
        Worker {
            host,
            podman,
            steady,
            number,
            own: None,
        }
    }

    /// Does operations, and removes its container at the end.
    pub(super) fn work(&mut self, seed: u64, part: Range<u64>) -> Result<()> {
        for operation in part {
            // Each has its own sequence, so that one can be looked at alone.
            let mut random = Random(seed ^ (self.number << 32) ^ operation);
            self.operate(operation, &mut random)
                .with_context(|| format!("worker {}, operation {operation}", self.number))?;
        }
        match self.own.take() {
            Some(own) => remove(self.podman, &own),
            None => Ok(()),
        }
    }

    fn operate(&mut self, operation: u64, random: &mut Random) -> Result<()> {
        let choice = random.below(100);
        let Some(own) = self.own.clone() else {
            return match choice {
                0..40 => self.exec(self.steady, random),
                40..50 => self.run_to_the_end(random),
                _ => {
                    let name = format!("own-{}-{operation}", self.number);
                    self.own = Some(run_detached(self.host, self.podman, &name)?);
                    Ok(())
                }
            };
        };
        match choice {
            0..35 => self.exec(&own, random),
            35..60 => self.exec(self.steady, random),
            60..75 => self.pause(&own),
            75..80 => self.stop_and_start(&own),
            80..85 => self.kill(&own),
            85..93 => self.strike(&own, random),
            _ => {
                self.own = None;
                remove(self.podman, &own)
            }
        }
    }

    /// What goes in comes out, with the status that was asked for.
    fn exec(&self, container: &str, random: &mut Random) -> Result<()> {
        let status = random.below(4) as i32;
        let text = format!("{:x}\n", random.next()).repeat(1 + random.below(400) as usize);
        let script = format!("cat; exit {status}");
        let exec = self.podman(["exec", "--interactive", container, "sh", "-c", &script])?;
        let exec = exec.input(text.clone()).run()?.exits(status)?;
        ensure!(exec.stdout == text.as_bytes(), "{exec}");
        Ok(())
    }

    fn run_to_the_end(&self, random: &mut Random) -> Result<()> {
        let status = random.below(4) as i32;
        let script = format!("echo done; exit {status}");
        let run = ["run", "--rm", "--network=bridge", &self.parent(), BUSYBOX];
        let run = self.podman(run)?.args(["sh", "-c", &script]);
        let run = run.run()?.exits(status)?;
        ensure!(run.text() == "done", "{run}");
        Ok(())
    }

    fn pause(&self, own: &str) -> Result<()> {
        self.podman(["pause", own])?.run()?.ok()?;
        ensure!(self.podman.inspect(own, "{{.State.Status}}")? == "paused");
        self.podman(["unpause", own])?.run()?.ok()?;
        let exec = self.podman(["exec", own, "echo", "awake"])?.run()?.ok()?;
        ensure!(exec.text() == "awake", "{exec}");
        Ok(())
    }

    fn stop_and_start(&self, own: &str) -> Result<()> {
        let stop = self.podman(["stop", "--time=60", own])?.run()?.ok()?;
        let code = self.podman.inspect(own, "{{.State.ExitCode}}")?;
        ensure!(code == "9", "{stop} has ended it with {code}");
        let before = times_ready(self.podman, own)?;
        self.podman(["start", own])?.run()?.ok()?;
        until_true("ready again", LIMIT, || {
            Ok(times_ready(self.podman, own)? > before)
        })
    }

    fn kill(&mut self, own: &str) -> Result<()> {
        self.podman(["kill", own])?.run()?.ok()?;
        self.ended(own)
    }

    /// Signal 9 to one of the processes that make the container.
    fn strike(&mut self, own: &str, random: &mut Random) -> Result<()> {
        let pid: i32 = self.podman.inspect(own, "{{.State.Pid}}")?.parse()?;
        let parts = parts_of(own, pid);
        ensure!(!parts.is_empty(), "{own} has no process");
        let victim = &parts[random.below(parts.len() as u64) as usize];
        self.host.note(format!("struck: {victim}"));
        victim.kill()?;
        self.ended(own)
    }

    /// Podman learns of the end, and removes what there was.
    fn ended(&mut self, own: &str) -> Result<()> {
        let waited = self.podman(["wait", own])?.run()?.ok()?;
        ensure!(waited.text() != "0", "{waited}");
        self.own = None;
        self.podman(["rm", own])?.run()?.ok()?;
        Ok(())
    }

    fn podman<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<Command<'w>> {
        Ok(self.podman.command(arguments)?.limit(LIMIT))
    }

    fn parent(&self) -> String {
        format!("--cgroup-parent=/{}", self.host.cgroup)
    }
}

/// Runs a container in the background, with a network, and gives its id.
pub(super) fn run_detached(host: &Host, podman: &Podman<'_>, name: &str) -> Result<String> {
    let (parent, name) = (
        format!("--cgroup-parent=/{}", host.cgroup),
        format!("--name={name}"),
    );
    let run = [
        "run",
        "--detach",
        "--network=bridge",
        &parent,
        &name,
        BUSYBOX,
    ];
    let run = podman.command(run)?.args(["sh", "-c", PROGRAM]);
    let id = run.limit(LIMIT).run()?.ok()?.text();
    until_true("ready", LIMIT, || Ok(times_ready(podman, &id)? == 1))?;
    Ok(id)
}

/// How often the program has said so. Before that a signal would be lost on it.
fn times_ready(podman: &Podman<'_>, container: &str) -> Result<usize> {
    let logs = podman.command(["logs", container])?.limit(LIMIT);
    Ok(logs.run()?.ok()?.text().matches("ready").count())
}

pub(super) fn remove(podman: &Podman<'_>, container: &str) -> Result<()> {
    let rm = podman.command(["rm", "--force", "--time=0", container])?;
    rm.limit(LIMIT).run()?.ok()?;
    Ok(())
}

/// The processes of a container: the one that stands for it, and with a virtual machine its
/// monitor and what that has started. In an order that the seed can rely on.
pub(super) fn parts_of(container: &str, pid: i32) -> Vec<Process> {
    let all = processes::ours();
    let monitor = all
        .iter()
        .find(|one| one.has_word("monitor") && one.has_word(container));
    let monitor = monitor.map(|one| one.pid);
    let mut parts: Vec<Process> = all
        .into_iter()
        .filter(|one| one.pid == pid || Some(one.pid) == monitor || Some(one.parent) == monitor)
        .collect();
    parts.sort_by_key(|one| (one.program().to_owned(), one.argv.get(1).cloned()));
    parts
}
