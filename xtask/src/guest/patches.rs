//! Our changes to Linux: few and small. They save time, or cure what goes wrong seldom; a guest
//! works without them, so one that does not fit a version is left out and reported.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command;

/// The patches of a folder, in the order of their names.
pub(crate) struct Patches(Vec<(PathBuf, String, String)>);

impl Patches {
    /// Reads every `*.patch` of `folder`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut patches = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "patch")
            {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let text =
                    fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
                patches.push((path, name, text));
            }
        }
        patches.sort();
        Ok(Self(patches))
    }

    /// Names and texts.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(_, name, text)| (name.as_str(), text.as_str()))
    }

    /// Changes the source in `tree`; returns the names of patches that do not fit it.
    pub(crate) fn apply(&self, tree: &Path) -> Result<Vec<&str>> {
        let mut unfit = Vec::new();
        for (path, name, _) in &self.0 {
            let fits = patch(tree, path)
                .arg("--dry-run")
                .stdin(Stdio::null())
                .output()
                .context("cannot run patch")?
                .status
                .success();
            if fits {
                command::output(&mut patch(tree, path))?;
            } else {
                unfit.push(name.as_str());
            }
        }
        Ok(unfit)
    }
}

fn patch(tree: &Path, path: &Path) -> Command {
    let mut patch = Command::new("patch");
    patch
        .args(["--batch", "--forward", "--strip=1", "--directory"])
        .arg(tree)
        .arg("--input")
        .arg(path);
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "why\n---\n--- a/file\n+++ b/file\n@@ -1 +1 @@\n-old\n+new\n";

    fn apply(before: &str) -> (Vec<String>, String) {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), before).unwrap();
        fs::write(folder.path().join("1.patch"), PATCH).unwrap();
        let patches = Patches::read(folder.path()).unwrap();
        let unfit = patches.apply(&tree).unwrap();
        let unfit = unfit.into_iter().map(str::to_string).collect();
        (unfit, fs::read_to_string(tree.join("file")).unwrap())
    }

    #[test]
    fn a_patch_that_fits_is_applied() {
        assert_eq!(apply("old\n"), (vec![], "new\n".to_string()));
    }

    #[test]
    fn a_patch_that_does_not_fit_is_named_and_changes_nothing() {
        assert_eq!(
            apply("other\n"),
            (vec!["1.patch".to_string()], "other\n".to_string())
        );
    }
}
