//! Kernel configuration by purpose, and the check that the kernel took it.
//!
//! A fragment is a list of lines:
//!
//! ```text
//! CONFIG_A=y              required: the build fails if the final configuration has it otherwise
//! CONFIG_A?=y             wanted: reported where this version of Linux has it otherwise
//! CONFIG_OLD|CONFIG_NEW=y one of the names, which differ between versions of Linux
//! # text                  a comment
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// One line of a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    names: Vec<String>,
    value: String,
    required: bool,
    fragment: String,
}

impl Choice {
    fn parse(line: &str, fragment: &str) -> Result<Self> {
        let (names, value) = line
            .split_once('=')
            .with_context(|| format!("{fragment}: no value in {line:?}"))?;
        let (names, required) = match names.strip_suffix('?') {
            Some(names) => (names, false),
            None => (names, true),
        };
        let names: Vec<String> = names.split('|').map(str::to_string).collect();
        if let Some(odd) = names.iter().find(|name| !is_option(name)) {
            bail!("{fragment}: {odd:?} is no name of a kernel option");
        }
        Ok(Self {
            names,
            value: value.to_string(),
            required,
            fragment: fragment.to_string(),
        })
    }

    fn holds_in(&self, kernel: &BTreeMap<&str, &str>) -> bool {
        self.names
            .iter()
            .any(|name| kernel.get(name.as_str()).unwrap_or(&"n") == &self.value)
    }

    fn shown(&self) -> String {
        format!(
            "{}={} ({})",
            self.names.join("|"),
            self.value,
            self.fragment
        )
    }
}

fn is_option(name: &str) -> bool {
    name.strip_prefix("CONFIG_").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    })
}

/// All fragments of a folder, in the order of their names.
#[derive(Debug)]
pub(crate) struct Fragments(Vec<Choice>);

impl Fragments {
    /// Reads every `*.config` of `folder`. An option may be chosen once only.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "config")
            {
                paths.push(path);
            }
        }
        paths.sort();
        let mut choices = Vec::new();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
            choices.extend(parse(&text, &name)?);
        }
        Self::new(choices)
    }

    fn new(choices: Vec<Choice>) -> Result<Self> {
        let mut seen = BTreeMap::new();
        for choice in &choices {
            for name in &choice.names {
                if let Some(before) = seen.insert(name, &choice.fragment) {
                    bail!(
                        "{name} is chosen in {before} and again in {}",
                        choice.fragment
                    );
                }
            }
        }
        Ok(Self(choices))
    }

    /// The list that Kconfig reads as `KCONFIG_ALLCONFIG`.
    pub(crate) fn merged(&self) -> String {
        let mut text = String::new();
        for choice in &self.0 {
            for name in &choice.names {
                text.push_str(&format!("{name}={}\n", choice.value));
            }
        }
        text
    }

    /// Fails with the names of required options that `config`, the kernel's final
    /// configuration, lacks; returns the wanted ones it lacks.
    pub(crate) fn verify(&self, config: &str) -> Result<Vec<String>> {
        let kernel = config
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .collect();
        let (required, wanted): (Vec<&Choice>, Vec<&Choice>) = self
            .0
            .iter()
            .filter(|choice| !choice.holds_in(&kernel))
            .partition(|choice| choice.required);
        if !required.is_empty() {
            let names: Vec<_> = required.iter().map(|choice| choice.shown()).collect();
            bail!(
                "this Linux does not take required options:\n  {}\nhint: an option's dependencies \
                 must be chosen too; `?=` makes it optional",
                names.join("\n  ")
            );
        }
        Ok(wanted.iter().map(|choice| choice.shown()).collect())
    }
}

fn parse(text: &str, fragment: &str) -> Result<Vec<Choice>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| Choice::parse(line, fragment))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragments(text: &str) -> Fragments {
        Fragments::new(parse(text, "test.config").unwrap()).unwrap()
    }

    #[test]
    fn a_missing_required_option_is_named() {
        let error = fragments("CONFIG_A=y\nCONFIG_B=y\n")
            .verify("CONFIG_A=y\n# CONFIG_B is not set\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("CONFIG_B=y (test.config)"), "{error}");
        assert!(!error.contains("CONFIG_A"), "{error}");
    }

    #[test]
    fn a_missing_wanted_option_is_reported_only() {
        let lacking = fragments("CONFIG_A?=y\nCONFIG_B?=\"text\"\n")
            .verify("CONFIG_B=\"text\"\n")
            .unwrap();
        assert_eq!(lacking, ["CONFIG_A=y (test.config)"]);
    }

    #[test]
    fn off_means_absent_or_unset() {
        let off = fragments("CONFIG_A=n\n");
        assert!(off.verify("# CONFIG_A is not set\n").is_ok());
        assert!(off.verify("").is_ok());
        assert!(off.verify("CONFIG_A=y\n").is_err());
    }

    #[test]
    fn one_of_several_names_is_enough() {
        let either = fragments("CONFIG_OLD|CONFIG_NEW=y\n");
        assert!(either.verify("CONFIG_NEW=y\n").is_ok());
        assert!(either.verify("CONFIG_OLD=y\n").is_ok());
        assert!(either.verify("").is_err());
        assert_eq!(either.merged(), "CONFIG_OLD=y\nCONFIG_NEW=y\n");
    }

    #[test]
    fn a_second_choice_and_a_wrong_line_are_refused() {
        assert!(Fragments::new(parse("CONFIG_A=y\nCONFIG_A=n\n", "f").unwrap()).is_err());
        assert!(parse("CONFIG_A is not set", "f").is_err());
        assert!(parse("config_a=y", "f").is_err());
    }

    #[test]
    fn the_projects_own_fragments_are_well_formed() {
        let folder = crate::workspace::root().join("guest/kernel");
        let all = Fragments::read(&folder).unwrap();
        assert!(all.merged().contains("CONFIG_VIRTIO_FS=y\n"));
    }
}
