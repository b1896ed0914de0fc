//! The part that a container plays in a pod of Kubernetes, by the annotations of
//! who made it: containerd's CRI plugin, or CRI-O.

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is in no pod.
    Alone,
    /// It comes first and holds the namespaces of the others. It has no program
    /// but one that waits.
    Sandbox,
    /// It joins a pod.
    Member {
        /// Id of the pod's sandbox container, as the client wrote it.
        sandbox_id: String,
    },
}

/// Names of the annotations for what a container is and for its pod.
const DIALECTS: [(&str, &str); 2] = [
    (
        "io.kubernetes.cri.container-type",
        "io.kubernetes.cri.sandbox-id",
    ),
    (
        "io.kubernetes.cri-o.ContainerType",
        "io.kubernetes.cri-o.SandboxID",
    ),
];

/// The part of a container with these annotations. A member that does not say
/// of which pod is alone.
pub fn role<'a>(annotations: impl IntoIterator<Item = (&'a String, &'a String)>) -> Role {
    let annotations: Vec<_> = annotations.into_iter().collect();
    let value = |name: &str| {
        let found = annotations.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.as_str())
    };
    for (kind, sandbox) in DIALECTS {
        match (value(kind), value(sandbox)) {
            (Some("sandbox"), _) => return Role::Sandbox,
            (Some("container"), Some(id)) if !id.is_empty() => {
                let sandbox_id = id.to_owned();
                return Role::Member { sandbox_id };
            }
            _ => {}
        }
    }
    Role::Alone
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn with(annotations: &[(&str, &str)]) -> Role {
        let owned = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        role(&owned.collect::<BTreeMap<_, _>>())
    }

    #[test]
    fn both_dialects_are_understood() {
        let member = |sandbox_id: &str| Role::Member {
            sandbox_id: sandbox_id.to_owned(),
        };
        for (kind, sandbox) in DIALECTS {
            assert_eq!(with(&[(kind, "sandbox"), (sandbox, "s")]), Role::Sandbox);
            assert_eq!(with(&[(kind, "sandbox")]), Role::Sandbox);
            assert_eq!(with(&[(sandbox, "s"), (kind, "container")]), member("s"));
        }
    }

    #[test]
    fn who_says_nothing_of_a_pod_is_alone() {
        let (kind, sandbox) = DIALECTS[0];
        let cases: [&[(&str, &str)]; 5] = [
            &[],
            &[("io.container.manager", "libpod")],
            &[(kind, "container")],
            &[(kind, "container"), (sandbox, "")],
            &[(kind, "Sandbox"), (sandbox, "s")],
        ];
        for annotations in cases {
            assert_eq!(with(annotations), Role::Alone, "{annotations:?}");
        }
    }
}
