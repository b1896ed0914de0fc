//! The annotations of Kata Containers, and what becomes of them here.
//!
//! One table says it for the code and for docs/migrating-from-kata.md. Pods that
//! were written for Kata run without a change: what has the same meaning here is
//! followed, and is subject to the same list of what pods may set; all else is a
//! warning, since it speaks of how Kata does its work and not of what the pod
//! needs to do its own.

mod keys;

use std::fmt::Write as _;

use keys::KEYS;

use crate::annotations::{PREFIX as OURS, shown};

use Meaning::{Nothing, Otherwise, Same};

/// How all of Kata's annotations begin.
pub(crate) const PREFIX: &str = "io.katacontainers.";

/// What becomes of an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It sets a key of the configuration.
    Same {
        /// The key.
        key: &'static str,
        /// What is not quite the same, or empty.
        remark: &'static str,
    },
    /// What it is for is had in another way.
    Otherwise(&'static str),
    /// There is nothing that it could change.
    Nothing(&'static str),
}

/// What becomes of the annotation `key`; nothing when Kata has none of that name.
pub(crate) fn meaning(key: &str) -> Option<Meaning> {
    let name = key.strip_prefix(PREFIX)?;
    let found = KEYS.iter().find(|(names, _)| names.contains(&name));
    found.map(|(_, meaning)| *meaning)
}

/// A value of Kata's as our key takes it: Kata counts parts of processors.
pub(crate) fn translated(key: &str, value: &str) -> String {
    match value.parse::<f32>() {
        Ok(processors) if key == "machine.vcpus" && value.contains('.') => {
            format!("{}", processors.ceil())
        }
        _ => value.to_owned(),
    }
}

/// Of an annotation that changes nothing.
pub(crate) fn warning(key: &str, meaning: Option<Meaning>) -> String {
    let key = shown(key);
    match meaning {
        Some(Otherwise(how)) => format!("annotation {key} has no effect here: {how}"),
        Some(Nothing(why)) => format!("annotation {key} has no effect: {why}"),
        Some(Same { .. }) | None => format!("annotation {key} has no effect: it is not known"),
    }
}

/// The table of docs/migrating-from-kata.md.
pub fn kata_markdown() -> String {
    let mut table = String::from("| Annotation of Kata | Here |\n|---|---|\n");
    for (names, meaning) in KEYS {
        let names: Vec<String> = names
            .iter()
            .map(|name| format!("`{}`", name.strip_prefix("config.").unwrap_or(name)))
            .collect();
        let here = match meaning {
            Same { key, remark: "" } => format!("**the same**: `{OURS}{key}`."),
            Same { key, remark } => format!("**the same**: `{OURS}{key}`. {remark}"),
            Otherwise(how) => format!("**another way**: {how}."),
            Nothing(why) => format!("**no meaning**: {why}."),
        };
        let _ = writeln!(table, "| {} | {here} |", names.join(", "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allow;

    #[test]
    fn the_same_is_a_key_for_pods_and_nothing_is_named_twice() {
        let mut names: Vec<&str> = Vec::new();
        for (keys, meaning) in KEYS {
            if let Same { key, .. } = meaning {
                assert!(allow::per_pod(key).is_some(), "{key}");
            }
            names.extend(*keys);
        }
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn parts_of_processors_are_rounded_up() {
        for (value, expected) in [
            ("1", "1"),
            ("0.5", "1"),
            ("2.0", "2"),
            ("-1.5", "-1"),
            ("1e9.5", "1e9.5"),
            ("two", "two"),
        ] {
            assert_eq!(translated("machine.vcpus", value), expected);
        }
        assert_eq!(translated("machine.memory_mib", "0.5"), "0.5");
    }

    #[test]
    fn warnings_say_what_is_done_instead() {
        let key = "io.katacontainers.config.hypervisor.default_max_vcpus";
        assert_eq!(
            warning(key, meaning(key)),
            format!(
                "annotation \"{key}\" has no effect here: the CPU limits of the pod size its machine"
            )
        );
    }
}
