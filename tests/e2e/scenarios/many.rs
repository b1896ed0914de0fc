//! Many containers, one after the other and at once.

use std::env;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use casemate_e2e::{BUSYBOX, Bundle, Host, Podman, Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![in_a_row, at_once, at_once_with_podman];
    all = all
        .into_iter()
        .map(|scenario| scenario.limit(Duration::from_secs(900)))
        .collect();
    all
}

/// How many starts make the row.
fn starts() -> Result<usize> {
    match env::var("CASEMATE_E2E_STARTS") {
        Ok(text) => text.parse().context("CASEMATE_E2E_STARTS"),
        Err(_) => Ok(100),
    }
}

const AT_ONCE: usize = 8;

/// No start fails, and the state of none stays.
fn in_a_row(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, &["true"])?;
    for number in 0..starts()? {
        let run = host
            .oci(&["run", "--bundle", bundle.path(), &host.new_id()])
            .run()?;
        run.ok().with_context(|| format!("start {number}"))?;
        no_state(host)?;
    }
    Ok(())
}

fn no_state(host: &Host) -> Result<()> {
    let listed = host.oci(&["list", "--quiet"]).run()?.ok()?;
    ensure!(listed.text().is_empty(), "{listed}");
    let Ok(entries) = fs::read_dir(host.runtime.default_root()) else {
        return Ok(());
    };
    let left: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn at_once(host: &Host) -> Result<()> {
    let one = |number: usize| -> Result<()> {
        let script = format!("echo {number}; sleep 0.5; exit {number}");
        let bundle = Bundle::new(host, &["sh", "-c", &script])?;
        let run = host.oci(&["run", "--bundle", bundle.path(), &host.new_id()]);
        let run = run
            .limit(Duration::from_secs(120))
            .run()?
            .exits(number as i32)?;
        ensure!(run.text() == number.to_string(), "{run}");
        Ok(())
    };
    all_at_once(&one)
}

fn at_once_with_podman(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let one = |number: usize| -> Result<()> {
        let script = format!("echo {number}; sleep 0.5; exit {number}");
        let run = podman.run(["--rm", BUSYBOX, "sh", "-c", &script])?;
        let run = run
            .limit(Duration::from_secs(120))
            .run()?
            .exits(number as i32)?;
        ensure!(run.text() == number.to_string(), "{run}");
        Ok(())
    };
    all_at_once(&one)
}

fn all_at_once(one: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (1..=AT_ONCE)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}
