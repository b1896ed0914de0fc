//! Templates: made when they are missing, used when they fit, never used when
//! they are not as they were made; and no two of their clones are the same.

mod clients;
mod damage;
mod distinct;
mod makers;
mod size;
mod store;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::templates::{self, STORE};
use casemate_e2e::{Bundle, Container, Host, Scenario, wait};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let parts = [
        store::scenarios(),
        clients::scenarios(),
        size::scenarios(),
        damage::scenarios(),
        makers::scenarios(),
        distinct::scenarios(),
    ];
    let all = parts.into_iter().flatten();
    all.map(|scenario| scenario.only_vm("runc has no templates"))
        .collect()
}

/// Long enough for a template to be made by who lets everybody else go first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a container to its end and says from which template it began.
fn start(host: &Host) -> Result<Option<String>> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    let origin = templates::origin(host, &[], &container.id)?;
    container.delete_force()?;
    Ok(origin)
}

/// The only template there is.
fn only_one() -> Result<String> {
    let names = names()?;
    ensure!(names.len() == 1, "{names:?}");
    Ok(names[0].clone())
}

/// Whole templates, and what is being made or removed.
fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(STORE) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(STORE)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The file of a template.
fn file(key: &str, name: &str) -> PathBuf {
    PathBuf::from(STORE).join(key).join(name)
}

/// Waits until everything that makes templates has ended.
fn made() -> Result<()> {
    wait::until_true("the template", PATIENCE, || {
        Ok(templates::makers().is_empty())
    })
}

/// Makes the template in the foreground.
fn create(host: &Host, flags: &[&str]) -> Result<String> {
    let words = [flags, &["template", "create"]].concat();
    Ok(host.oci(&words).limit(PATIENCE).run()?.ok()?.text())
}
