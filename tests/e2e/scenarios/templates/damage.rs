//! Whatever happens to a template, it is not used, nothing fails, and another
//! takes its place.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::templates::{self, STORE};
use casemate_e2e::{Host, Scenario};
use serde_json::{Value, json};

use super::{create, file, made, only_one, start};

pub(super) fn scenarios() -> Vec<Scenario> {
    let harms: [(&str, Harm); 8] = [
        ("state_written_over", |_, key| {
            write_into(&file(key, "state"), 1000, b"something else")
        }),
        ("memory_written_over", |_, key| {
            write_into(&file(key, "memory"), 1 << 20, b"something else")
        }),
        ("memory_cut_off", |_, key| {
            let memory = File::options().write(true).open(file(key, "memory"))?;
            Ok(memory.set_len(100 << 20)?)
        }),
        ("memory_gone", |_, key| {
            Ok(fs::remove_file(file(key, "memory"))?)
        }),
        ("header_cut_off", |_, key| {
            let header = File::options().write(true).open(file(key, "header"))?;
            Ok(header.set_len(500)?)
        }),
        ("header_of_another_version", |host, key| {
            change_header(host, key, |header| header["version"] = json!(99))
        }),
        ("state_that_nobody_takes", nonsense),
        ("state_of_nothing", |host, key| {
            let path = file(key, "state");
            File::options().write(true).open(&path)?.set_len(0)?;
            reseal(host, key)
        }),
    ];
    let scenario =
        |(name, harm): (&str, Harm)| Scenario::new(name, move |host| is_replaced(host, harm));
    harms.into_iter().map(scenario).collect()
}

/// What happens to the template with this key.
type Harm = fn(&Host, &str) -> Result<()>;

fn is_replaced(host: &Host, harm: Harm) -> Result<()> {
    templates::own()?;
    create(host, &[])?;
    let key = only_one()?;
    let before = fs::metadata(format!("{STORE}/{key}"))?.ino();
    harm(host, &key)?;
    ensure!(start(host)?.is_none(), "it was used");
    // One that failed late is removed and made anew by the start after that.
    start(host)?;
    made()?;
    ensure!(only_one()? == key);
    ensure!(fs::metadata(format!("{STORE}/{key}"))?.ino() != before);
    ensure!(start(host)? == Some(key.clone()));
    let shown = host.oci(&["template", "show", &key]).run()?.ok()?;
    contains(&shown.text(), "as it was made")
}

fn write_into(path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(file.write_all(bytes)?)
}

/// A state that is whole by all that can be known, and that no VMM understands.
fn nonsense(host: &Host, key: &str) -> Result<()> {
    let path = file(key, "state");
    let size = fs::metadata(&path)?.len() as usize;
    write_into(&path, 100, &vec![0x55; size - 200])?;
    reseal(host, key)
}

/// Makes the header say of the state what is true of it now.
fn reseal(host: &Host, key: &str) -> Result<()> {
    let path = file(key, "state");
    let found = fs::metadata(&path)?;
    let sha256 = digest(host, &path)?;
    change_header(host, key, |header| {
        header["state"] = json!({
            "file": {
                "device": found.dev(), "inode": found.ino(), "size": found.size(),
                "modifiedS": found.mtime(), "modifiedNs": found.mtime_nsec(),
                "changedS": found.ctime(), "changedNs": found.ctime_nsec(),
            },
            "bytes": found.size(),
            "sha256": sha256,
        });
    })
}

/// Writes the header anew, with the digest of what it is then.
fn change_header(host: &Host, key: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = file(key, "header");
    let text = fs::read_to_string(&path)?;
    let (json, _) = text.trim_end().rsplit_once('\n').context("two parts")?;
    let mut header: Value = serde_json::from_str(json)?;
    change(&mut header);
    fs::write(&path, serde_json::to_string_pretty(&header)?)?;
    let sha256 = digest(host, &path)?;
    let mut file = File::options().append(true).open(&path)?;
    Ok(write!(file, "\n{sha256}\n")?)
}

fn digest(host: &Host, path: &Path) -> Result<String> {
    let told = host.command("sha256sum").arg(path).run()?.ok()?.text();
    let digest = told.split(' ').next();
    Ok(digest.context("a digest")?.to_owned())
}
