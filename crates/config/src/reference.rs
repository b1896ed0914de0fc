//! The texts that are made from the definition of the keys.

use std::fmt::Write as _;

use crate::allow::SAFE;
use crate::definition::PerPod;
use crate::keys::definitions;
use crate::{ANNOTATION_PREFIX, DEFAULT_FILE, DROP_IN_DIRECTORY};

/// The reference page of the configuration, `docs/configuration.md`.
pub fn reference_markdown() -> String {
    let mut page = format!(
        "# Configuration\n\n\
         <!-- Made from crates/config/src/keys.rs by `{REGENERATE}`. -->\n\n\
         Casemate needs no configuration file: every key has a default. Where there are\n\
         files, `{DEFAULT_FILE}` is read first and then\n\
         `{DROP_IN_DIRECTORY}/*.toml` in the order of their names; a later value\n\
         replaces an earlier one, key by key. `--config FILE` reads that file instead of\n\
         all of these.\n\n\
         An unknown table or key, or a value that a key does not accept, is an error that\n\
         names the file and the line.\n"
    );
    for table in definitions() {
        let _ = write!(page, "\n## `[{}]`\n\n{}", table.name, unindented(table.doc));
        for key in table.keys {
            let _ = write!(
                page,
                "\n### `{}.{}`\n\n{}\nAccepts {}. Default: `{}`.\n{}",
                table.name,
                key.name,
                unindented(key.doc),
                key.accepts,
                key.default,
                per_pod(&format!("{}.{}", table.name, key.name), key.per_pod),
            );
        }
    }
    page
}

/// How a pod sets the key, if it can.
fn per_pod(key: &str, per_pod: Option<PerPod>) -> String {
    if per_pod.is_none() {
        return String::new();
    }
    let allowed = match SAFE.contains(&key) {
        true => "allowed by default",
        false => "not allowed by default",
    };
    format!("Annotation of a pod: `{ANNOTATION_PREFIX}{key}`, {allowed}.\n")
}

/// A configuration file that says what holds without it, with every key as a
/// comment.
pub fn default_file() -> String {
    let mut file = format!(
        "# Casemate's configuration, {DEFAULT_FILE}. Every key is shown with its\n\
         # default; take off the \"#\" in front of a key to change it.\n"
    );
    for table in definitions() {
        let _ = write!(file, "\n{}[{}]\n", comment(table.doc), table.name);
        for key in table.keys {
            let _ = write!(
                file,
                "\n{}# Accepts {}.\n#{} = {}\n",
                comment(key.doc),
                key.accepts,
                key.name,
                key.default,
            );
        }
    }
    file
}

/// The command that writes the generated files anew.
pub(crate) const REGENERATE: &str =
    "CASEMATE_WRITE_GENERATED=1 cargo test -p casemate-config --test generated";

fn unindented(doc: &str) -> String {
    doc.lines()
        .map(|line| format!("{}\n", line.trim()))
        .collect()
}

fn comment(doc: &str) -> String {
    doc.lines()
        .map(|line| format!("# {}\n", line.trim()))
        .collect()
}
