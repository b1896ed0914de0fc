//! Templates of the runtime: the saved machines from which its sandboxes begin.
//!
//! Scenarios of one run share a store, so that one of them makes a template and
//! all others begin from it. It is mounted where the runtime looks for it unless
//! its configuration says otherwise, so no client has to know. A scenario may
//! have a store [of its own](own), or be [without](off).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::host::Host;
use crate::images::once;
use crate::processes::{self, Process};

/// Where the runtime keeps them.
pub const STORE: &str = "/run/casemate/templates";

/// The verb of the process that makes one in the background.
const MAKER: &str = "template-maker";

/// How long makers may take, which let everybody else go first.
const PATIENCE: Duration = Duration::from_secs(40);

/// Shows the run's store in this scenario, with a template in it.
pub(crate) fn share(host: &Host) -> Result<()> {
    let shared = host.shared.join("templates");
    fs::create_dir_all(STORE).context(STORE)?;
    once(host, "templates", || {
        fs::create_dir(&shared)?;
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o700))?;
        bind(&shared)?;
        // A runtime that makes none has scenarios that say so. This is only what all
        // others begin from: once more, before every one of them fails.
        let made = host.oci(&["template", "create"]).run()?;
        if made.exit.shell() != 0 {
            println!("the shared template is tried once more: {made}");
            host.oci(&["template", "create"]).run().map(drop)?;
        }
        umount2(STORE, MntFlags::empty())?;
        Ok(())
    })?;
    bind(&shared)
}

fn bind(folder: &Path) -> Result<()> {
    let nothing = None::<&str>;
    mount(Some(folder), STORE, nothing, MsFlags::MS_BIND, nothing).context(STORE)
}

/// From now on this scenario has a store of its own, which is empty.
pub fn own() -> Result<()> {
    umount2(STORE, MntFlags::empty()).context(STORE)?;
    fs::remove_dir(STORE).context(STORE)
}

/// Where the configuration of this scenario's machine says that there are none, if it
/// does: who has a configuration of its own takes it over.
pub(crate) const OFF: &str = "/etc/casemate/config.d/templates.toml";

/// The configuration of this scenario's machine says that there are none.
pub(crate) fn off(host: &Host) -> Result<()> {
    let place = |name: &str| -> Result<PathBuf> {
        let folder = host.dir.join("etc").join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    };
    let (upper, work) = (place("upper")?, place("work")?);
    let drop_ins = upper.join("casemate/config.d");
    fs::create_dir_all(&drop_ins)?;
    fs::write(
        drop_ins.join("templates.toml"),
        "[template]\nmode = \"off\"\n",
    )?;
    let options = format!(
        "lowerdir=/etc,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    let kind = Some("overlay");
    mount(kind, "/etc", kind, MsFlags::empty(), Some(options.as_str())).context("/etc")
}

/// The processes that make templates for this scenario.
pub fn makers() -> Vec<Process> {
    let mut found = processes::ours();
    found.retain(|process| process.has_word(MAKER));
    found
}

/// Waits for their end.
pub fn await_makers() {
    let deadline = Instant::now() + PATIENCE;
    while !makers().is_empty() && Instant::now() < deadline {
        sleep(Duration::from_millis(20));
    }
}

/// From which template each sandbox of this scenario began; none for one that
/// booted.
pub fn origins(host: &Host) -> Result<Vec<Option<String>>> {
    let mut monitors = processes::ours();
    monitors.retain(|process| process.has_word("monitor") && process.has_word("--directory"));
    let after = |process: &Process, flag: &str| {
        let mut words = process.argv.iter().skip_while(|word| *word != flag);
        words.nth(1).cloned()
    };
    let origin = |process: &Process| -> Result<Option<String>> {
        let root = after(process, "--root").context("a monitor without a root")?;
        let id = after(process, "--id").context("a monitor without an id")?;
        origin(host, &["--root", &root], &id)
    };
    monitors.iter().map(origin).collect()
}

/// From which template the sandbox of a container began; none when it booted.
pub fn origin(host: &Host, flags: &[&str], id: &str) -> Result<Option<String>> {
    let words = [flags, &["timeline", "--format", "json", id]].concat();
    let told = host.oci(&words).run()?.ok()?;
    let told: Value = serde_json::from_slice(&told.stdout).context("the JSON of `timeline`")?;
    let spans = told["spans"].as_array().context("a list of spans")?;
    let cloned = spans.iter().filter(|span| span["part"] == "vmm");
    let mut keys = cloned.filter_map(|span| span["name"].as_str()?.strip_prefix("clone of "));
    Ok(keys.next().map(str::to_owned))
}

/// What `template list` says.
pub fn listed(host: &Host, flags: &[&str]) -> Result<Vec<Value>> {
    let words = [flags, &["template", "list", "--format", "json"]].concat();
    let told = host.oci(&words).run()?.ok()?;
    let told: Value =
        serde_json::from_slice(&told.stdout).context("the JSON of `template list`")?;
    let list = told["templates"]
        .as_array()
        .context("a list of templates")?;
    Ok(list.clone())
}
