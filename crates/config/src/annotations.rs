//! What annotations of a pod change in the configuration.
//!
//! `casemate.io/KEY` sets the key of that name for one sandbox, by the same
//! definition that a file is read by. Annotations come from whoever can make a
//! pod, so [`allow`](mod@crate::allow) is the border: what is not allowed is
//! refused, as is what is misspelt, since a pod that asked for something must
//! not run without it. Keys of Kata Containers are [understood](mod@crate::kata)
//! where they have a meaning here.

use std::collections::BTreeMap;

use crate::allow::{self, Forbidden};
use crate::definition::{Given, PerPod, Refusal};
use crate::kata::{self, Meaning};
use crate::keys::definitions;
use crate::nearest::nearest_key;
use crate::{Config, DEFAULT_FILE, Tier};

/// How the keys of our annotations begin.
pub const PREFIX: &str = "casemate.io/";

/// Why an annotation was refused, in one line with key, value, reason and cure.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key} = {value}: {reason}")]
pub struct AnnotationError {
    /// Of the annotation, quoted.
    key: String,
    /// Of the annotation, quoted and shortened.
    value: String,
    /// What is wrong with them.
    pub reason: AnnotationProblem,
}

/// What is wrong with an annotation.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationProblem {
    /// The configuration has no such key.
    #[error("unknown key{}", nearest.as_ref().map_or(String::new(), |key| format!("; did you mean {PREFIX}{key}?")))]
    Unknown {
        /// One that may have been meant.
        nearest: Option<String>,
    },

    /// The key is the same for all sandboxes of a host.
    #[error("{setting} is for the host's configuration alone; remove the annotation")]
    HostOnly {
        /// The key of the configuration.
        setting: String,
    },

    /// The host lets no pod set the key.
    #[error(
        "this host does not let pods set {setting}; remove the annotation, or allow it with \
         {entry:?} in pod.annotations of {DEFAULT_FILE}"
    )]
    NotAllowed {
        /// The key of the configuration.
        setting: String,
        /// What would allow it.
        entry: String,
    },

    /// The host lets pods set the key to something else.
    #[error(
        "this host lets pods set {setting} to {} only (pod.annotations of {DEFAULT_FILE})",
        allowed.join(" or ")
    )]
    ValueNotAllowed {
        /// The key of the configuration.
        setting: String,
        /// Patterns of allowed values.
        allowed: Vec<String>,
    },

    /// The key does not accept the value.
    #[error("expected {expected}")]
    Value {
        /// What the key accepts.
        expected: String,
    },

    /// The isolation would be weaker than the host demands.
    #[error("this host demands at least {floor} (vmm.min_tier); a pod can only ask for more")]
    WeakerTier {
        /// What the host demands.
        floor: Tier,
    },
}

impl Config {
    /// The configuration of a sandbox whose first container has these
    /// annotations, and warnings of those that change nothing here. Annotations
    /// of others, which do not begin as ours or as Kata's, are left alone.
    ///
    /// # Errors
    /// The first annotation, in the order of their keys, that cannot be followed.
    pub fn with_annotations(
        mut self,
        annotations: &BTreeMap<String, String>,
    ) -> Result<(Self, Vec<String>), AnnotationError> {
        let host = self.clone();
        let mut warnings = Vec::new();
        // Ours come after Kata's, and so replace what these have set.
        for (key, value) in with_prefix(annotations, kata::PREFIX) {
            match kata::meaning(key) {
                Some(Meaning::Same { key: setting, .. }) => {
                    let value = kata::translated(setting, value);
                    let annotation = Annotation { key, value: &value };
                    annotation.apply(&mut self, &host, setting)?;
                }
                other => warnings.push(kata::warning(key, other)),
            }
        }
        for (key, value) in with_prefix(annotations, PREFIX) {
            let annotation = Annotation { key, value };
            annotation.apply(&mut self, &host, &key[PREFIX.len()..])?;
        }
        Ok((self, warnings))
    }
}

fn with_prefix<'a>(
    annotations: &'a BTreeMap<String, String>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let from = annotations.range(prefix.to_owned()..);
    from.map(|(key, value)| (key.as_str(), value.as_str()))
        .take_while(move |(key, _)| key.starts_with(prefix))
}

/// One annotation that sets a key.
#[derive(Clone, Copy)]
struct Annotation<'a> {
    key: &'a str,
    value: &'a str,
}

impl Annotation<'_> {
    /// Sets `setting` in `config` if `host`, the configuration without any
    /// annotation, allows that.
    fn apply(
        self,
        config: &mut Config,
        host: &Config,
        setting: &str,
    ) -> Result<(), AnnotationError> {
        let (table, name) = setting.split_once('.').unwrap_or((setting, ""));
        if allow::per_pod(setting).is_none() {
            return Err(self.error(not_for_pods(table, name)));
        }
        allow::check(&host.pod.annotations, setting, self.value)
            .map_err(|forbidden| self.error(not_allowed(setting, forbidden)))?;
        let value = match setting {
            "guest.kernel_parameters" => joined(&config.guest.kernel_parameters, self.value),
            _ => self.value.to_owned(),
        };
        config
            .assign(table, name, &Given::Text(&value))
            .map_err(|refusal| self.error(not_accepted(refusal)))?;
        let floor = host.vmm.min_tier;
        if config.vmm.min_tier < floor {
            return Err(self.error(AnnotationProblem::WeakerTier { floor }));
        }
        Ok(())
    }

    fn error(self, reason: AnnotationProblem) -> AnnotationError {
        AnnotationError {
            key: shown(self.key),
            value: shown(self.value),
            reason,
        }
    }
}

fn not_for_pods(table: &str, name: &str) -> AnnotationProblem {
    let mut tables = definitions().into_iter();
    let keys = tables
        .find(|known| known.name == table)
        .map(|known| known.keys);
    if keys.is_some_and(|keys| keys.iter().any(|known| known.name == name)) {
        let setting = format!("{table}.{name}");
        return AnnotationProblem::HostOnly { setting };
    }
    let nearest = nearest_key(table, name);
    AnnotationProblem::Unknown { nearest }
}

fn not_allowed(setting: &str, forbidden: Forbidden) -> AnnotationProblem {
    let setting = setting.to_owned();
    match forbidden {
        Forbidden::Key => AnnotationProblem::NotAllowed {
            entry: match allow::per_pod(&setting) {
                Some(PerPod::File) => format!("{setting}=/FOLDER/*"),
                _ => setting.clone(),
            },
            setting,
        },
        Forbidden::Value { allowed } => AnnotationProblem::ValueNotAllowed { setting, allowed },
    }
}

fn not_accepted(refusal: Refusal) -> AnnotationProblem {
    match refusal {
        Refusal::Value { expected } => AnnotationProblem::Value { expected },
        Refusal::UnknownTable | Refusal::UnknownKey => AnnotationProblem::Unknown { nearest: None },
    }
}

/// Words of the host, and of the pod behind them.
fn joined(host: &str, pod: &str) -> String {
    match host {
        "" => pod.to_owned(),
        _ => format!("{host} {pod}"),
    }
}

/// A text of a stranger on one line, short enough for an error.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests;
