//! containerd: a runtime in the tables of its CRI plugin, and the link under
//! which it starts the runtime.
//!
//! The configuration has one file, `config.toml`, whose comments and order are
//! kept. Where it has version 3 (containerd 2) and imports a folder of files,
//! the runtime gets one of its own there. Before containerd 2 an imported file
//! replaces the whole section of a plugin, so there it would take away what the
//! main file says of CRI.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use toml_edit::{DocumentMut, Item, Table, TableLike, value};

use super::{Change, NAME, Plan, read, read_link};
use crate::arguments::Install;

/// What containerd makes of `runtime_type = "io.containerd.casemate.v2"`.
const SHIM: &str = "containerd-shim-casemate-v2";

const RUNC: &str = "runc";
const DEFAULT_RUNTIME: &str = "default_runtime_name";

/// Comments by which `--undo` knows what was added. containerd has an entry for
/// runc unless another runtime is named in version 2 of the file.
const OURS: &str = "# Written by `casemate install containerd`.";
const OUR_RUNC: &str = "# The built-in entry, which goes when another runtime is named. Written by \
                        `casemate install containerd`.";
const BEFORE: &str = " # casemate: before";

pub(super) fn plan(arguments: &Install, binary: &Path) -> Result<Plan> {
    let main = arguments.etc.join("containerd/config.toml");
    let before = read(&main)?;
    let text = before.as_deref();
    let file = File::parse(&main, text)?;
    let link = arguments.bin.join(SHIM);
    let drop_in = match file.drop_in(&main) {
        Some(path) => Some((read(&path)?, path)),
        None => None,
    };
    let mut remarks = file.remarks();
    if arguments.default {
        remarks.push(
            "pods that need the node's own network or processes (hostNetwork, hostPID: those of \
             the cluster itself) cannot run in a virtual machine; give them a RuntimeClass with \
             the handler runc",
        );
    }
    let undo = arguments.undo;
    let mut changes = Vec::new();
    if let Some((before, path)) = drop_in {
        let after = (!undo).then(|| File::drop_in_text(arguments.default));
        changes.push(Change::File {
            path,
            before,
            after,
        });
    }
    if undo || changes.is_empty() {
        let after = match undo {
            true => file.without(text),
            false => Some(file.with(arguments.default)?),
        };
        changes.push(Change::File {
            path: main,
            before,
            after,
        });
    }
    changes.push(Change::Link {
        before: read_link(&link)?,
        after: (!undo).then(|| binary.to_owned()),
        path: link,
    });
    Ok(Plan {
        changes,
        next_step: Some("systemctl restart containerd (pods go on running)"),
        example: format!("a RuntimeClass with the handler {NAME:?}: docs/kubernetes.md"),
        remarks,
    })
}

/// The main file.
struct File {
    path: PathBuf,
    document: DocumentMut,
    version: i64,
}

impl File {
    /// # Errors
    /// When it is not one that can be changed.
    fn parse(path: &Path, text: Option<&str>) -> Result<Self> {
        let name = path.display();
        let fresh = format!("version = {}\n", newest_version());
        let mut document: DocumentMut =
            text.unwrap_or(&fresh)
                .parse()
                .map_err(|error: toml_edit::TomlError| {
                    let message = error.message().replace('\n', " ");
                    anyhow::anyhow!("{name}: not changed: not valid TOML: {message}")
                })?;
        if document.is_empty() {
            document["version"] = value(newest_version());
        }
        let version = document.get("version").map_or(Some(1), Item::as_integer);
        match version {
            Some(version @ (2 | 3)) => Ok(Self {
                path: path.to_owned(),
                document,
                version,
            }),
            Some(1) => bail!(
                "{name}: not changed: it has no `version = 2`, so containerd reads it in its oldest \
                 form; replace it by what `containerd config default` prints, then run this again"
            ),
            _ => bail!("{name}: not changed: its version is none of 2 and 3, which are known here"),
        }
    }

    /// The tables of the CRI plugin's runtimes, from the root.
    fn section(version: i64) -> [&'static str; 3] {
        let plugin = match version {
            2 => "io.containerd.grpc.v1.cri",
            _ => "io.containerd.cri.v1.runtime",
        };
        ["plugins", plugin, "containerd"]
    }

    /// The file of our own beside the main one, where there may be one.
    fn drop_in(&self, main: &Path) -> Option<PathBuf> {
        if self.version < 3 {
            return None;
        }
        let imports = self.document.get("imports")?.as_array()?;
        let mut patterns = imports.iter().filter_map(|pattern| pattern.as_str());
        let folder = patterns.find_map(|pattern| pattern.strip_suffix("/*.toml"))?;
        Some(main.parent()?.join(folder).join("50-casemate.toml"))
    }

    fn drop_in_text(default: bool) -> String {
        let mut document = DocumentMut::new();
        document["version"] = value(3);
        let mut file = File {
            path: PathBuf::new(),
            document,
            version: 3,
        };
        // The tables are new, so nothing can be in the way.
        let _ = file.register(default);
        file.document.to_string()
    }

    fn remarks(&self) -> Vec<&'static str> {
        let disabled = self
            .document
            .get("disabled_plugins")
            .and_then(Item::as_array);
        let is_cri = |plugin: &toml_edit::Value| plugin.as_str().is_some_and(|p| p.contains("cri"));
        match disabled.is_some_and(|plugins| plugins.iter().any(is_cri)) {
            true => vec![
                "its disabled_plugins name the CRI plugin, without which there is no Kubernetes",
            ],
            false => Vec::new(),
        }
    }

    /// The file with the runtime in it.
    fn with(mut self, default: bool) -> Result<String> {
        let name = self.path.display().to_string();
        self.register(default)
            .with_context(|| format!("{name}: not changed"))?;
        Ok(self.document.to_string())
    }

    fn register(&mut self, default: bool) -> Result<()> {
        let is_old = self.version == 2;
        let containerd = tables(self.document.as_table_mut(), &Self::section(self.version))?;
        if default {
            make_default(containerd);
        }
        let runtimes = tables(containerd, &["runtimes"])?;
        if is_old && runtimes.is_empty() {
            let mut runc = Table::new();
            runc["runtime_type"] = value("io.containerd.runc.v2");
            mark(&mut runc, OUR_RUNC);
            runtimes.insert(RUNC, Item::Table(runc));
        }
        if !runtimes.contains_key(NAME) {
            let mut table = Table::new();
            mark(&mut table, OURS);
            runtimes.insert(NAME, Item::Table(table));
        }
        let entry = tables(runtimes, &[NAME])?;
        for (key, wanted) in [
            ("runtime_type", value("io.containerd.casemate.v2")),
            (
                "pod_annotations",
                value(array(&["casemate.io/*", "io.katacontainers.*"])),
            ),
            ("privileged_without_host_devices", value(true)),
        ] {
            let there = entry
                .get(key)
                .map(|item| item.to_string().trim().to_owned());
            if there != Some(wanted.to_string()) {
                entry.insert(key, wanted);
            }
        }
        Ok(())
    }

    /// The file without it; none when nothing else is in it.
    fn without(mut self, before: Option<&str>) -> Option<String> {
        let before = before?;
        let section = Self::section(self.version);
        let Ok(containerd) = tables(self.document.as_table_mut(), &section) else {
            return Some(before.to_owned());
        };
        let ours = forget_default(containerd);
        if let Some(runtimes) = containerd
            .get_mut("runtimes")
            .and_then(Item::as_table_like_mut)
        {
            runtimes.remove(NAME);
            let added = runtimes
                .get(RUNC)
                .and_then(Item::as_table)
                .is_some_and(is_our_runc);
            if added {
                runtimes.remove(RUNC);
            }
        }
        let item = section
            .iter()
            .try_fold(self.document.as_item_mut(), |item, name| item.get_mut(name));
        // Its header came with the default.
        if let Some(table) = item.and_then(Item::as_table_mut)
            && ours
            && table.iter().all(|(_, item)| item.is_table())
        {
            table.set_implicit(true);
        }
        let after = self.document.to_string();
        let bare = format!("version = {}", self.version);
        (after.trim() != bare || before.trim() == bare).then_some(after)
    }
}

/// The table at `path` under `root`. What is missing is made, and shows only when
/// something is in it.
fn tables<'a>(root: &'a mut dyn TableLike, path: &[&str]) -> Result<&'a mut dyn TableLike> {
    let mut table = root;
    for name in path {
        let entry = table.entry(name).or_insert_with(|| {
            let mut made = Table::new();
            made.set_implicit(true);
            Item::Table(made)
        });
        table = entry
            .as_table_like_mut()
            .with_context(|| format!("{name} is not a table"))?;
    }
    Ok(table)
}

fn mark(table: &mut Table, comment: &str) {
    table.decor_mut().set_prefix(format!("\n{comment}\n"));
}

fn is_our_runc(table: &Table) -> bool {
    let prefix = table.decor().prefix().and_then(|prefix| prefix.as_str());
    prefix.is_some_and(|prefix| prefix.contains(OUR_RUNC))
}

fn array(texts: &[&str]) -> toml_edit::Array {
    texts.iter().copied().collect()
}

/// Names the runtime as the default, and behind it what was.
fn make_default(containerd: &mut dyn TableLike) {
    let there = containerd.get(DEFAULT_RUNTIME).and_then(Item::as_value);
    let before = there.map(ToString::to_string).unwrap_or_default();
    if there.is_none_or(|there| there.as_str() != Some(NAME)) {
        put(containerd, NAME.into(), &format!("{BEFORE}{before}"));
    }
}

/// Whether it was the first default that the file named.
fn forget_default(containerd: &mut dyn TableLike) -> bool {
    let there = containerd.get(DEFAULT_RUNTIME).and_then(Item::as_value);
    let Some(there) = there.filter(|there| there.as_str() == Some(NAME)) else {
        return false;
    };
    let suffix = there.decor().suffix().and_then(|suffix| suffix.as_str());
    let before = suffix.and_then(|suffix| suffix.strip_prefix(BEFORE));
    let before = before.unwrap_or_default().trim_start().to_owned();
    let end = before.find(char::is_whitespace).unwrap_or(before.len());
    let (name, suffix) = before.split_at(end);
    match name.parse::<toml_edit::Value>() {
        Ok(name) => put(containerd, name, suffix),
        Err(_) => drop(containerd.remove(DEFAULT_RUNTIME)),
    }
    name.is_empty()
}

/// Sets the default in its place, with this behind it.
fn put(containerd: &mut dyn TableLike, mut name: toml_edit::Value, suffix: &str) {
    *name.decor_mut() = toml_edit::Decor::new(" ", suffix);
    match containerd.get_mut(DEFAULT_RUNTIME) {
        Some(there) => *there = Item::Value(name),
        None => drop(containerd.insert(DEFAULT_RUNTIME, Item::Value(name))),
    }
}

/// The version of the file that the installed containerd writes; without one,
/// that which all read.
fn newest_version() -> i64 {
    let told = Command::new("containerd").arg("--version").output();
    let told = told.map(|told| String::from_utf8_lossy(&told.stdout).into_owned());
    version_for(&told.unwrap_or_default())
}

/// From "containerd github.com/containerd/containerd/v2 2.1.9 …".
fn version_for(told: &str) -> i64 {
    let number = told.split_whitespace().nth(2).unwrap_or_default();
    let number = number.trim_start_matches('v').split('.').next();
    match number.and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major >= 2 => 3,
        _ => 2,
    }
}

#[cfg(test)]
mod tests;
