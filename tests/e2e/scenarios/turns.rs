//! Many starts at once take turns.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::{Bundle, Exit, Host, Running, Scenario, processes, scenarios, wait};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use serde_json::Value;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let all: Vec<Scenario> = scenarios![in_turn, while_others_have_them];
    all.into_iter()
        .map(|scenario| scenario.only_vm("runc starts no machines"))
        .collect()
}

/// How long a start may take to stand in the line.
const PATIENCE: Duration = Duration::from_secs(10);

/// More than have a turn at once on a host with two processors.
const STARTS: usize = 6;

/// A configuration with one start at a time for each processor.
fn one_each(host: &Host) -> Result<String> {
    let file = host.dir.join("turns.toml");
    fs::write(&file, "[vmm]\nstarts_per_processor = 1\n")?;
    Ok(file.to_str().context("a path in UTF-8")?.to_owned())
}

/// All of them start, and never more at once than there are turns.
fn in_turn(host: &Host) -> Result<()> {
    let configuration = one_each(host)?;
    let taken = take_all()?;
    let ids: Vec<String> = (0..STARTS).map(|_| host.new_id()).collect();
    let mut starts = Vec::new();
    for id in &ids {
        starts.push(start(host, &configuration, id)?);
        await_line(starts.len())?;
    }
    drop(taken);
    for (start, id) in starts.iter().zip(&ids) {
        let exit = start.exit()?;
        ensure!(exit == Exit::Code(0), "{id}: {exit:?}");
    }
    let mut moments = Vec::new();
    for id in &ids {
        let told = host
            .oci(&["timeline", id, "--format", "json"])
            .run()?
            .ok()?;
        let told: Value = serde_json::from_slice(&told.stdout)?;
        let (_, begin) = span(&told, "wait for a turn")?;
        let (end, _) = span(&told, "create in the guest")?;
        moments.extend([(begin, 1), (end, -1)]);
        host.oci(&["delete", "--force", id]).run()?.ok()?;
    }
    moments.sort_unstable();
    let processors = thread::available_parallelism()?.get() as i32;
    let mut at_once = 0;
    for (_, change) in moments {
        at_once += change;
        ensure!(at_once <= processors, "{at_once} started at once");
    }
    // Their output ends with the containers.
    for start in starts {
        start.finish()?;
    }
    Ok(())
}

/// Where the turns of a host are.
const TURNS: &str = "/run/casemate/turns";

/// Takes all turns of this host, as somebody would who does not get on.
fn take_all() -> Result<Vec<Flock<File>>> {
    let mut folder = DirBuilder::new();
    folder.recursive(true).mode(0o700).create(TURNS)?;
    let slots = 0..thread::available_parallelism()?.get();
    let take = |number: usize| -> Result<Flock<File>> {
        let path = Path::new(TURNS).join(number.to_string());
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let pipe = File::options().read(true).write(true).open(&path)?;
        let locked = Flock::lock(pipe, FlockArg::LockExclusiveNonblock);
        locked.map_err(|(_, errno)| errno.into())
    };
    slots.map(take).collect()
}

/// Who waits for a turn can be told to end, and be killed; the others go on when
/// there is one.
fn while_others_have_them(host: &Host) -> Result<()> {
    let configuration = one_each(host)?;
    let taken = take_all()?;
    let ids: Vec<String> = (0..3).map(|_| host.new_id()).collect();
    let mut starts = Vec::new();
    for id in &ids {
        starts.push(start(host, &configuration, id)?);
        await_line(starts.len())?;
    }
    ensure!(
        processes::ours()
            .iter()
            .all(|one| !one.program().starts_with("qemu")),
        "a machine has started without a turn"
    );
    let mut starts = starts.into_iter();
    // The first is told to end.
    host.oci(&["delete", "--force", &ids[0]]).run()?.ok()?;
    let first = starts.next().context("the first")?;
    ensure!(first.exit()? != Exit::Code(0), "{}", first.finish()?);
    // The second is killed.
    for process in monitors().iter().filter(|one| one.has_word(&ids[1])) {
        process.kill()?;
    }
    let second = starts.next().context("the second")?;
    ensure!(second.exit()? != Exit::Code(0), "{}", second.finish()?);
    host.oci(&["delete", "--force", &ids[1]]).run()?;
    // The third starts.
    drop(taken);
    let third = starts.next().context("the third")?;
    ensure!(third.exit()? == Exit::Code(0), "{}", third.finish()?);
    host.oci(&["delete", "--force", &ids[2]]).run()?.ok()?;
    third.finish()?;
    Ok(())
}

fn monitors() -> Vec<processes::Process> {
    let mut ours = processes::ours();
    ours.retain(|one| one.has_word("monitor"));
    ours
}

/// Creates a container with a cgroup of its own.
fn start<'h>(host: &'h Host, configuration: &str, id: &str) -> Result<Running<'h>> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let create = ["--config", configuration, "create", "--bundle"];
    let create = [&create[..], &[bundle.path(), id]].concat();
    host.oci(&create).start()
}

/// Waits until so many wait for their turn: a monitor each, and a process that
/// waits for it where it is not the first.
fn await_line(starts: usize) -> Result<()> {
    let all = 2 * starts - 1;
    wait::until_true("all of them wait", PATIENCE, || Ok(monitors().len() == all))
}

/// When a span began and ended, in nanoseconds.
fn span(told: &Value, name: &str) -> Result<(u64, u64)> {
    let mut spans = told["spans"].as_array().into_iter().flatten();
    let span = spans.find(|span| span["name"] == name);
    let span = span.with_context(|| format!("no {name:?} in {told}"))?;
    let number = |key: &str| {
        span[key]
            .as_u64()
            .with_context(|| format!("{key} in {span}"))
    };
    Ok((number("beginNs")?, number("endNs")?))
}
