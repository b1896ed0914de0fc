//! Many who make a template at once, and any of them killed at any time: there is
//! one template or none, and nothing else.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use casemate_e2e::processes::{self, Process};
use casemate_e2e::templates::{self, STORE};
use casemate_e2e::{Bundle, Container, Host, Scenario, scenarios, wait};

use super::{PATIENCE, made, names, only_one, start};

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        many_starts_race,
        makers_race,
        one_that_is_being_made_is_not_used,
        background_has_nothing_of_the_sandbox,
    ];
    for (name, victim) in [
        ("maker", Victim::Maker),
        ("vmm", Victim::Vmm),
        ("devices", Victim::Devices),
    ] {
        let name = format!("{name}_killed_while_making");
        all.push(Scenario::new(name, move |host| killed(host, victim)));
    }
    all
}

fn many_starts_race(host: &Host) -> Result<()> {
    templates::own()?;
    let one = || -> Result<()> {
        let bundle = Bundle::new(host, &["true"])?;
        let run = host.oci(&["run", "--bundle", bundle.path(), &host.new_id()]);
        run.limit(PATIENCE).run()?.ok().map(drop)
    };
    at_once(4, &one)?;
    made()?;
    let key = only_one()?;
    at_once(4, &|| {
        ensure!(start(host)? == Some(key.clone()));
        Ok(())
    })
}

fn makers_race(host: &Host) -> Result<()> {
    templates::own()?;
    at_once(3, &|| {
        let made = host.oci(&["template", "create"]).limit(PATIENCE).run()?;
        match made.exit.shell() {
            0 => Ok(()),
            _ => {
                ensure!(
                    made.errors().contains("somebody else is making it"),
                    "{made}"
                );
                Ok(())
            }
        }
    })?;
    ensure!(start(host)? == Some(only_one()?));
    Ok(())
}

fn at_once(count: usize, work: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

/// Starts while one is being made boot, and leave the maker alone.
fn one_that_is_being_made_is_not_used(host: &Host) -> Result<()> {
    templates::own()?;
    let making = host.oci(&["template", "create"]).limit(PATIENCE).start()?;
    let half = wait::until("a half-made template", PATIENCE, || {
        Ok(names()?.into_iter().find(|name| name.starts_with(".new-")))
    })?;
    ensure!(start(host)?.is_none() || !names()?.contains(&half));
    making.finish()?.ok()?;
    made()?;
    ensure!(start(host)? == Some(only_one()?));
    Ok(())
}

/// What a maker holds is its own: the container can go, and whoever called has no
/// descriptor to wait for.
fn background_has_nothing_of_the_sandbox(host: &Host) -> Result<()> {
    templates::own()?;
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let container = Container::run(host, &bundle)?;
    let maker = wait::until("a maker", PATIENCE, || Ok(templates::makers().pop()))?;
    // It has entered its own place when it has its machine.
    wait::until_true("its machine", PATIENCE, || {
        Ok(!names()?.is_empty() || templates::makers().is_empty())
    })?;
    let folder = format!("/proc/{}", maker.pid);
    let mounts = fs::read_to_string(format!("{folder}/mountinfo")).unwrap_or_default();
    ensure!(!mounts.contains(".sandbox-"), "{mounts}");
    let nice = fs::read_to_string(format!("{folder}/stat")).unwrap_or_default();
    let nice = nice
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(16));
    ensure!(nice.is_none_or(|nice| nice == "10"), "{nice:?}");
    let group = fs::read_to_string(format!("{folder}/cgroup")).unwrap_or_default();
    ensure!(!group.contains(bundle.cgroup()), "{group}");
    container.delete_force()?;
    made()?;
    only_one().map(drop)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Maker,
    Vmm,
    Devices,
}

/// Processes of makers.
fn find(victim: Victim) -> Vec<Process> {
    let below = |maker: Process| {
        let mut found = processes::descendants(maker.pid);
        found.push(maker);
        found
    };
    let mut found: Vec<Process> = templates::makers().into_iter().flat_map(below).collect();
    found.retain(|process| match victim {
        Victim::Maker => process.has_word("template-maker"),
        Victim::Vmm => {
            process.program().starts_with("qemu-system") && process.has_word("-nodefaults")
        }
        Victim::Devices => process.has_word("devices"),
    });
    found
}

/// At several times, from the first to the last moment of its life.
fn killed(host: &Host, victim: Victim) -> Result<()> {
    templates::own()?;
    for delay in [0, 150, 400, 900] {
        let before = names()?;
        ensure!(before.is_empty(), "{before:?}");
        ensure!(start(host)?.is_none());
        let targets = wait::until("the victim", PATIENCE, || {
            let found = find(victim);
            Ok((!found.is_empty() || templates::makers().is_empty()).then_some(found))
        })?;
        thread::sleep(Duration::from_millis(delay));
        for target in targets {
            // It may be done already.
            let _ = target.kill();
        }
        made()?;
        nobody_is_left()?;
        // A failure would keep starts from trying again, which a kill does not.
        if victim != Victim::Devices {
            let failed = fs::read_dir(STORE)?.flatten();
            let mut failed =
                failed.filter(|entry| entry.file_name().to_string_lossy().ends_with(".failed"));
            ensure!(failed.next().is_none());
        }
        host.oci(&["template", "prune"]).run()?.ok()?;
        let whole = names()?;
        ensure!(whole.iter().all(|name| !name.starts_with('.')), "{whole:?}");
        // What is there is good.
        for key in whole {
            ensure!(start(host)? == Some(key.clone()));
            host.oci(&["template", "delete", &key]).run()?.ok()?;
        }
        fs::read_dir(STORE)?.flatten().try_for_each(|entry| {
            let failed = entry.path().extension().is_some_and(|end| end == "failed");
            match failed {
                true => fs::remove_file(entry.path()).context("the note of a failure"),
                false => Ok(()),
            }
        })?;
    }
    // Whatever was left, the next start makes a whole one.
    ensure!(start(host)?.is_none());
    made()?;
    ensure!(start(host)? == Some(only_one()?));
    Ok(())
}

fn nobody_is_left() -> Result<()> {
    wait::until_true("the end of everybody", Duration::from_secs(5), || {
        let mut left = processes::ours();
        left.retain(|process| {
            process.program().starts_with("qemu-system") || process.has_word("devices")
        });
        Ok(left.is_empty())
    })
}
