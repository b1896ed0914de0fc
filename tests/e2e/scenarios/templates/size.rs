//! A sandbox that wants another size than the template's.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use casemate_e2e::templates::STORE;
use casemate_e2e::{Bundle, Container, Host, Scenario, cgroups, scenarios, templates};
use serde_json::json;

use super::{PATIENCE, made};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        a_clone_grows,
        one_that_wants_less_has_a_template_of_its_own,
        what_a_clone_begins_with_counts_in_its_cgroup,
    ]
}

/// Prints processors and MiB of memory, and waits.
const LOOK: &str = "grep -c ^processor /proc/cpuinfo; \
     awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo; sleep 1000";

/// From which template a container with this annotation began, and what it sees.
fn seen(host: &Host, key: &str, value: &str) -> Result<(Option<String>, u64, u64)> {
    let bundle = Bundle::new(host, &["sh", "-c", LOOK])?.edit(|spec| {
        spec["annotations"][format!("casemate.io/{key}")] = json!(value);
    })?;
    let mut container = Container::run(host, &bundle)?;
    let text = casemate_e2e::wait::until("its words", PATIENCE, || {
        let text = String::from_utf8(container.streams().written())?;
        Ok((text.lines().count() == 2).then_some(text))
    })?;
    let origin = templates::origin(host, &[], &container.id)?;
    container.delete_force()?;
    let mut numbers = text.lines().map(str::parse::<u64>);
    let mut next = || numbers.next().context("two numbers")?.context("a number");
    Ok((origin, next()?, next()?))
}

fn a_clone_grows(host: &Host) -> Result<()> {
    let (origin, processors, usual) = seen(host, "machine.vcpus", "1")?;
    ensure!(origin.is_some() && processors == 1);
    let (grown, processors, _) = seen(host, "machine.vcpus", "2")?;
    ensure!(grown == origin, "{grown:?}");
    ensure!(processors == 2, "{processors}");
    let (grown, processors, memory) = seen(host, "machine.memory_mib", "512")?;
    ensure!(grown == origin && processors == 1, "{grown:?}");
    // As much more, but for what the kernel needs to keep account of it.
    let more = memory - usual;
    ensure!((240..=256).contains(&more), "{usual} and {memory} MiB");
    Ok(())
}

fn one_that_wants_less_has_a_template_of_its_own(host: &Host) -> Result<()> {
    let (first, _, memory) = seen(host, "machine.memory_mib", "192")?;
    ensure!(first.is_none() && memory < 192, "{first:?} {memory}");
    made()?;
    let (second, _, memory) = seen(host, "machine.memory_mib", "192")?;
    ensure!(second.is_some() && memory < 192, "{second:?} {memory}");
    let (usual, _, _) = seen(host, "machine.vcpus", "1")?;
    ensure!(usual.is_some() && usual != second, "{usual:?}");
    Ok(())
}

/// As the memory of a machine that boots does.
fn what_a_clone_begins_with_counts_in_its_cgroup(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let path = bundle.cgroup().trim_start_matches('/').to_owned();
    let container = Container::run(host, &bundle)?;
    let key = templates::origin(host, &[], &container.id)?.context("a clone")?;
    let template = fs::metadata(format!("{STORE}/{key}/memory"))?;
    let folder = cgroups::find(|folder| folder.ends_with(&path))
        .into_iter()
        .find(|folder| folder.join("memory.stat").exists());
    let figures = fs::read_to_string(folder.context("a cgroup")?.join("memory.stat"))?;
    let shared = figures
        .lines()
        .find_map(|line| line.strip_prefix("shmem "))
        .context("shared memory")?
        .parse::<u64>()?;
    let copied = template.blocks() * 512;
    ensure!(shared >= copied, "{shared} of {copied} bytes");
    container.delete_force()
}
