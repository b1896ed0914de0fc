//! The verbs, and what the configuration says of the store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::templates::{self, STORE};
use casemate_e2e::{Bundle, Exit, Host, Scenario, Skip, runtime, scenarios};

use super::{create, made, names, only_one, start};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![
        a_start_makes_what_the_next_begins_from,
        the_verbs,
        the_limit_is_kept,
        off,
        elsewhere,
        with_a_newer_vmm,
    ]
}

fn a_start_makes_what_the_next_begins_from(host: &Host) -> Result<()> {
    templates::own()?;
    ensure!(start(host)?.is_none());
    made()?;
    let key = only_one()?;
    for _ in 0..2 {
        ensure!(start(host)? == Some(key.clone()));
    }
    ensure!(templates::makers().is_empty(), "another one is made");
    let log = fs::read_to_string(format!("{STORE}/maker.log"))?;
    contains(&log, &key)?;
    for (path, mode) in [
        (PathBuf::from(STORE), 0o700),
        (super::file(&key, "memory"), 0o400),
        (super::file(&key, "state"), 0o400),
        (super::file(&key, "header"), 0o400),
    ] {
        let found = fs::metadata(&path)?.permissions().mode() & 0o7777;
        ensure!(found == mode, "{}: {found:o}", path.display());
    }
    Ok(())
}

fn the_verbs(host: &Host) -> Result<()> {
    templates::own()?;
    let call = |words: &[&str]| host.oci(&[&["template"], words].concat()).run();
    let listed = call(&["list"])?.ok()?.text();
    ensure!(listed.lines().count() == 1, "{listed}");
    let told = create(host, &[])?;
    let key = only_one()?;
    ensure!(told.starts_with(&format!("made {key} in ")), "{told}");
    let told = create(host, &[])?;
    ensure!(told == format!("{key} is there already"), "{told}");
    ensure!(start(host)? == Some(key.clone()));
    let list = templates::listed(host, &[])?;
    let row = list.first().context("a template")?;
    ensure!(row["key"] == *key && row["state"] == "fits", "{row}");
    ensure!(row["vcpus"] == 1 && row["memoryMib"] == 256, "{row}");
    // No more than what the guest has touched.
    let bytes = row["bytes"].as_u64().context("bytes")?;
    ensure!((4 << 20..100 << 20).contains(&bytes), "{bytes}");
    let shown = call(&["show", &key])?.ok()?.text();
    for part in ["as it was made", "vmlinux", "host boot", "-nodefaults"] {
        contains(&shown, part)?;
    }
    contains(&host.oci(&["check"]).run()?.ok()?.text(), &key)?;
    for words in [
        &["show", "0000000000000000"][..],
        &["delete", "../oci"],
        &["delete", "0000000000000000"],
    ] {
        one_clear_line(&call(words)?.exits(1)?)?;
    }
    ensure!(call(&["prune"])?.ok()?.text().is_empty());
    ensure!(call(&["delete", &key])?.ok()?.text() == key);
    ensure!(names()?.is_empty());
    create(host, &[])?;
    ensure!(call(&["delete", "--all"])?.ok()?.text() == key);
    ensure!(names()?.is_empty());
    // Not even the maker's log is in anybody's way.
    ensure!(start(host)?.is_none());
    made()?;
    ensure!(only_one()? == key);
    Ok(())
}

/// A configuration file of the scenario's own.
fn configuration(host: &Host, text: &str) -> Result<String> {
    let file = host.new_folder("c")?.join("config.toml");
    fs::write(&file, text)?;
    Ok(file.to_str().context("a path in UTF-8")?.to_owned())
}

/// Those that were used last stay; one that is larger than all is not made, nor
/// tried again by every start.
fn the_limit_is_kept(host: &Host) -> Result<()> {
    templates::own()?;
    create(host, &[])?;
    let first = only_one()?;
    let taken = templates::listed(host, &[])?[0]["bytes"].as_u64();
    let mib = taken.context("bytes")? >> 20;
    let of_size = |memory: u64, limit: u64| {
        let text = format!("[machine]\nmemory_mib = {memory}\n[template]\nlimit_mib = {limit}\n");
        configuration(host, &text)
    };
    // Room for two.
    let limit = 2 * mib + mib / 2;
    create(host, &["--config", &of_size(257, limit)?])?;
    ensure!(names()?.len() == 2);
    ensure!(start(host)? == Some(first.clone()));
    let told = create(host, &["--config", &of_size(258, limit)?])?;
    contains(&told, "template.limit_mib")?;
    let left = names()?;
    ensure!(left.len() == 2 && left.contains(&first), "{left:?}");
    let small = of_size(256, 16)?;
    let pruned = host.oci(&["--config", &small, "template", "prune"]).run()?;
    ensure!(pruned.ok()?.text().lines().count() == 2);
    ensure!(names()?.is_empty());
    let refused = host
        .oci(&["--config", &small, "template", "create"])
        .run()?;
    contains(&one_clear_line(&refused.exits(1)?)?, "template.limit_mib")?;
    ensure!(names()?.is_empty());
    for round in 0..2 {
        let bundle = Bundle::new(host, &["true"])?;
        let id = host.new_id();
        let run = ["--config", &small, "run", "--bundle", bundle.path(), &id];
        host.oci(&run).run()?.ok()?;
        let tries = templates::makers().len();
        made()?;
        ensure!(round == 0 || tries == 0, "it is tried again");
    }
    ensure!(names()?.is_empty());
    let list = host.oci(&["template", "list", "--format", "json"]).run()?;
    contains(&list.ok()?.text(), "template.limit_mib allows 16")
}

/// From which template a container with this configuration begins.
fn start_with(host: &Host, configuration: &str) -> Result<Option<String>> {
    let bundle = Bundle::new(host, &["sleep", "1000"])?;
    let id = host.new_id();
    let create = ["--config", configuration, "create", "--bundle"];
    let create = [&create[..], &[bundle.path(), &id]].concat();
    let created = host.oci(&create).start()?;
    ensure!(created.exit()? == Exit::Code(0), "{}", created.finish()?);
    let origin = templates::origin(host, &[], &id)?;
    host.oci(&["delete", "--force", &id]).run()?.ok()?;
    created.finish()?.ok()?;
    Ok(origin)
}

fn off(host: &Host) -> Result<()> {
    let text = "[template]\nmode = \"off\"\n";
    let off = configuration(host, text)?;
    ensure!(start_with(host, &off)?.is_none());
    ensure!(templates::makers().is_empty());
    contains(
        &host.oci(&["--config", &off, "check"]).run()?.ok()?.text(),
        "off",
    )
}

/// On a disk, in a folder that nobody has made; and in one that others may write
/// nothing is looked for.
fn elsewhere(host: &Host) -> Result<()> {
    let folder = host.dir.join("var/templates");
    let place = folder.to_str().context("a path in UTF-8")?;
    let text = format!("[template]\ndirectory = \"{place}\"\n");
    let there = configuration(host, &text)?;
    let started = || start_with(host, &there);
    ensure!(started()?.is_none());
    made()?;
    ensure!(started()?.is_some());
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    ensure!(started()?.is_none());
    ensure!(templates::makers().is_empty());
    let refused = host.oci(&["--config", &there, "template", "list"]).run()?;
    let line = one_clear_line(&refused.exits(1)?)?;
    contains(&line, "can be written by others")
}

/// Each program has templates of its own.
fn with_a_newer_vmm(host: &Host) -> Result<()> {
    let program = runtime::checkout().join("build/clients/qemu10/usr/bin/qemu-system-x86_64");
    if !program.exists() {
        let why = "no QEMU 10: `cargo xtask clients` unpacks one";
        return Err(Skip(why.to_owned()).into());
    }
    let newer = configuration(host, &format!("[qemu]\npath = \"{}\"\n", program.display()))?;
    let before = start(host)?.context("a template of the usual one")?;
    create(host, &["--config", &newer])?;
    let newer = start_with(host, &newer)?.context("a template of the newer one")?;
    ensure!(newer != before);
    ensure!(start(host)? == Some(before));
    Ok(())
}
