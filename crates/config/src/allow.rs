//! Which keys a pod may set: the entries of `pod.annotations`.

use std::path::{Component, Path};

use toml::de::DeValue;

use crate::definition::PerPod;
use crate::domain::{Domain, quote};
use crate::keys::PER_POD;

/// The keys that are allowed unless the host's configuration says otherwise:
/// they change what the pod itself gets, within what the host has, and name
/// nothing of the host.
pub(crate) const SAFE: [&str; 4] = [
    "vmm.min_tier",
    "machine.vcpus",
    "machine.memory_mib",
    "share.cache",
];

/// What it takes to allow `key` to pods; nothing when it is the host's alone.
pub(crate) fn per_pod(key: &str) -> Option<PerPod> {
    let found = PER_POD.iter().find(|(name, _)| *name == key);
    found.map(|(_, per_pod)| *per_pod)
}

/// Why a pod may not set a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Forbidden {
    /// No entry names the key.
    Key,
    /// The entries that name it allow other values.
    Value {
        /// The patterns.
        allowed: Vec<String>,
    },
}

/// Whether `entries` let a pod set `key` to `value`.
pub(crate) fn check(entries: &[String], key: &str, value: &str) -> Result<(), Forbidden> {
    let of_key = entries.iter().map(|entry| Entry::of(entry));
    let of_key: Vec<Entry<'_>> = of_key.filter(|entry| entry.key == key).collect();
    if of_key.is_empty() {
        return Err(Forbidden::Key);
    }
    // Where a pattern ends in a folder, `..` would lead out of it.
    let leads_out = Path::new(value)
        .components()
        .any(|c| c == Component::ParentDir);
    let is_file = per_pod(key) == Some(PerPod::File);
    if !(is_file && leads_out) && of_key.iter().any(|entry| entry.allows(value)) {
        return Ok(());
    }
    let patterns = of_key.iter().filter_map(|entry| entry.pattern);
    Err(Forbidden::Value {
        allowed: patterns.map(str::to_owned).collect(),
    })
}

/// One entry of the list.
struct Entry<'a> {
    key: &'a str,
    pattern: Option<&'a str>,
}

impl<'a> Entry<'a> {
    fn of(text: &'a str) -> Self {
        match text.split_once('=') {
            Some((key, pattern)) => Self {
                key: key.trim_end(),
                pattern: Some(pattern.trim_start()),
            },
            None => Self {
                key: text,
                pattern: None,
            },
        }
    }

    fn is_valid(&self) -> bool {
        match per_pod(self.key) {
            None => false,
            Some(PerPod::Any) => self.pattern != Some(""),
            Some(PerPod::File) => self.pattern.is_some_and(|pattern| pattern.starts_with('/')),
        }
    }

    fn allows(&self, value: &str) -> bool {
        self.pattern.is_none_or(|pattern| matches(pattern, value))
    }
}

/// Whether all of `text` is what `pattern` says; `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let inner = text.strip_prefix(start);
    let Some(mut inner) = inner.and_then(|inner| inner.strip_suffix(end)) else {
        return false;
    };
    // Each at its first place leaves the most for those that follow.
    middle.split('*').all(|part| match inner.split_once(part) {
        Some((_, behind)) => {
            inner = behind;
            true
        }
        None => false,
    })
}

/// Entries as above.
pub(crate) struct AllowList;

impl Domain<Vec<String>> for AllowList {
    fn accepts(&self) -> String {
        let name = |(key, per_pod): &(&str, PerPod)| match per_pod {
            PerPod::Any => quote(key),
            PerPod::File => quote(&format!("{key}=/…")),
        };
        let names: Vec<String> = PER_POD.iter().map(name).collect();
        format!("a list of {}", names.join(", "))
    }

    fn read(&self, value: &DeValue<'_>) -> Option<Vec<String>> {
        let entry = |value: &toml::Spanned<DeValue<'_>>| {
            let text = value.get_ref().as_str()?;
            Entry::of(text).is_valid().then(|| text.to_owned())
        };
        value.as_array()?.iter().map(entry).collect()
    }

    fn write(&self, value: &Vec<String>) -> String {
        let entries: Vec<String> = value.iter().map(|entry| quote(entry)).collect();
        format!("[{}]", entries.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_safe_is_a_list_of_the_list_s_kind() {
        for key in SAFE {
            assert!(Entry::of(key).is_valid(), "{key}");
            assert_ne!(per_pod(key), Some(PerPod::File), "{key}");
        }
    }

    #[test]
    fn patterns_match_whole_texts() {
        let cases = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "any/thing", true),
            ("/opt/*", "/opt/a/b", true),
            ("/opt/*", "/op", false),
            ("/opt/*.img", "/opt/a.img", true),
            ("/opt/*.img", "/opt/a.img.old", false),
            ("a*b*c", "abbc", true),
            ("a*b*c", "acb", false),
            ("a*b*b*c", "abc", false),
            ("a*a", "a", false),
            ("ü*", "üß", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn entries_name_keys_and_values() {
        let list = |entries: &[&str]| {
            entries
                .iter()
                .copied()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let entries = list(&[
            "machine.vcpus",
            "guest.kernel=/opt/*",
            "guest.kernel = /boot/vmlinux",
        ]);
        let check = |key, value| check(&entries, key, value);
        assert_eq!(check("machine.vcpus", "7"), Ok(()));
        assert_eq!(check("guest.kernel", "/opt/vmlinux"), Ok(()));
        assert_eq!(check("guest.kernel", "/boot/vmlinux"), Ok(()));
        assert_eq!(check("guest.initrd", "/opt/initrd"), Err(Forbidden::Key));
        let allowed = list(&["/opt/*", "/boot/vmlinux"]);
        for outside in ["/etc/shadow", "/opt/../etc/shadow", "/opt/a/.."] {
            let allowed = allowed.clone();
            assert_eq!(
                check("guest.kernel", outside),
                Err(Forbidden::Value { allowed }),
                "{outside}"
            );
        }
    }

    #[test]
    fn a_key_of_files_needs_to_say_which() {
        for (entry, expected) in [
            ("machine.vcpus", true),
            ("machine.vcpus=1*", true),
            ("machine.vcpus=", false),
            ("guest.kernel", false),
            ("guest.kernel=*", false),
            ("guest.kernel=/opt/*", true),
            ("qemu.path=/opt/*", false),
            ("machine.*", false),
            ("", false),
        ] {
            assert_eq!(Entry::of(entry).is_valid(), expected, "{entry}");
        }
    }
}
