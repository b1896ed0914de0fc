//! The generated files in docs/ match the definition of the keys.

use std::path::{Path, PathBuf};

use casemate_config::{Config, default_file, kata_markdown, reference_markdown};

/// Set to write the files instead of comparing them.
const WRITE: &str = "CASEMATE_WRITE_GENERATED";

fn check(name: &str, expected: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name);
    if std::env::var_os(WRITE).is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(
        found == expected,
        "docs/{name} is stale: run {WRITE}=1 cargo test -p casemate-config --test generated"
    );
}

#[test]
fn the_reference_is_up_to_date() {
    check("configuration.md", &reference_markdown());
}

#[test]
fn the_default_file_is_up_to_date() {
    check("config.toml", &default_file());
}

/// A table within a page that is written by hand.
#[test]
fn the_table_of_kata_s_annotations_is_up_to_date() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/migrating-from-kata.md");
    let page = std::fs::read_to_string(page).unwrap();
    let begin = page.find("<!-- kata: ").unwrap();
    let begin = begin + page[begin..].find('\n').unwrap() + 1;
    let end = page.find("<!-- /kata -->").unwrap();
    let expected = format!("{}{}{}", &page[..begin], kata_markdown(), &page[end..]);
    check("migrating-from-kata.md", &expected);
}

#[test]
fn the_default_file_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, default_file()).unwrap();
    assert_eq!(Config::load(Some(&file)).unwrap(), Config::default());
}

/// With every comment sign before a key taken off, the file sets every key to
/// its default: each default is a value that its key accepts.
#[test]
fn every_default_is_accepted_by_its_key() {
    let is_key = |line: &str| line.starts_with('#') && !line.starts_with("# ");
    let uncommented: String = default_file()
        .lines()
        .map(|line| if is_key(line) { &line[1..] } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert!(uncommented.contains("\nvcpus = 1\n"), "{uncommented}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, uncommented).unwrap();
    assert_eq!(Config::load(Some(&file)).unwrap(), Config::default());
}
