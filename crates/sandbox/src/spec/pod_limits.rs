//! The limits of a whole Kubernetes pod.
//!
//! A pod's first container (the *sandbox* or infra container) is a process that
//! waits, and its own limits are that process's: containerd gives it 2 CPU
//! shares, CRI-O the processors that are reserved for such. What the pod's
//! containers may use together, and so what a machine for them must have, the
//! client says in annotations. Kubelet sums the limits for this, and what a
//! container without a limit may use is not in the sum.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};
use serde::Deserialize;

use super::Error;

/// `sandbox` marks a pod's first container: containerd's name and CRI-O's.
const CONTAINERD_TYPE: &str = "io.kubernetes.cri.container-type";
const CRIO_TYPE: &str = "io.kubernetes.cri-o.ContainerType";

/// containerd's: a number each, 0 without a limit.
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";

/// CRI-O's: the CRI's LinuxContainerResources as JSON. The second name is the
/// one that it moves to.
const CRIO_RESOURCES: [&str; 2] = [
    "io.kubernetes.cri-o.PodLinuxResources",
    "pod-linux-resources.crio.io",
];

/// Limits as the CRI has them; 0 is none.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// In bytes.
    pub memory_limit_in_bytes: i64,
    /// In microseconds.
    pub cpu_quota: i64,
    /// In microseconds.
    pub cpu_period: u64,
    /// As cgroup v1 counts them.
    pub cpu_shares: u64,
}

/// The limits of the pod whose first container has these annotations; nothing
/// for any other container.
///
/// # Errors
/// When an annotation of the client is not what it is said to be.
pub(super) fn resources(
    annotations: &BTreeMap<String, String>,
) -> Result<Option<LinuxResources>, Error> {
    let is_first = |key| annotations.get(key).is_some_and(|kind| kind == "sandbox");
    let limits = if is_first(CONTAINERD_TYPE) {
        Some(containerd(annotations)?)
    } else if is_first(CRIO_TYPE) {
        crio(annotations)?
    } else {
        None
    };
    Ok(limits.map(|limits| limits.resources()))
}

/// What of a pod's limits holds for its machine on the host from the outside.
/// The CPU quota does not: Kubernetes has a cgroup of its own around the pod for
/// that, and may raise it while the pod runs.
pub(super) fn on_the_host(pod: &LinuxResources) -> LinuxResources {
    let mut host = pod.clone();
    let shares = pod.cpu().as_ref().and_then(LinuxCpu::shares);
    host.set_cpu(shares.map(|shares| {
        let mut cpu = LinuxCpu::default();
        cpu.set_shares(Some(shares));
        cpu
    }));
    host
}

fn containerd(annotations: &BTreeMap<String, String>) -> Result<Limits, Error> {
    fn number<T: std::str::FromStr + Default>(
        annotations: &BTreeMap<String, String>,
        key: &str,
    ) -> Result<T, Error> {
        let Some(text) = annotations.get(key) else {
            return Ok(T::default());
        };
        let field = || format!("annotations.{key}");
        text.parse()
            .map_err(|_| Error::invalid(field(), text, "is not a number of its kind"))
    }
    Ok(Limits {
        memory_limit_in_bytes: number(annotations, MEMORY)?,
        cpu_quota: number(annotations, CPU_QUOTA)?,
        cpu_period: number(annotations, CPU_PERIOD)?,
        cpu_shares: number(annotations, CPU_SHARES)?,
    })
}

/// Nothing from a client that borrows CRI-O's names and means the container's own
/// limits.
fn crio(annotations: &BTreeMap<String, String>) -> Result<Option<Limits>, Error> {
    let mut names = CRIO_RESOURCES.iter();
    let Some((key, text)) = names.find_map(|name| annotations.get_key_value(*name)) else {
        return Ok(None);
    };
    // A pod without limits has none of it.
    if text == "null" {
        return Ok(Some(Limits::default()));
    }
    super::object(text.as_bytes())
        .map(Some)
        .map_err(|_| Error::invalid(format!("annotations.{key}"), text, "is not CRI resources"))
}

impl Limits {
    /// The same in the runtime spec's words.
    pub fn resources(&self) -> LinuxResources {
        let mut cpu = LinuxCpu::default();
        cpu.set_quota((self.cpu_quota > 0).then_some(self.cpu_quota));
        cpu.set_period((self.cpu_period > 0).then_some(self.cpu_period));
        cpu.set_shares((self.cpu_shares > 0).then_some(self.cpu_shares));
        let mut memory = LinuxMemory::default();
        let limit = self.memory_limit_in_bytes;
        memory.set_limit((limit > 0).then_some(limit));
        let mut resources = LinuxResources::default();
        resources.set_cpu(Some(cpu)).set_memory(Some(memory));
        resources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory limit, quota, period and shares.
    type Seen = (Option<i64>, Option<i64>, Option<u64>, Option<u64>);

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = pairs
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()));
        owned.collect()
    }

    fn seen(resources: &LinuxResources) -> Seen {
        let memory = resources.memory().as_ref().and_then(LinuxMemory::limit);
        let cpu = resources.cpu().clone().unwrap_or_default();
        (memory, cpu.quota(), cpu.period(), cpu.shares())
    }

    #[test]
    fn containerd_s_numbers_are_the_pod_s() {
        let limited = [
            (CONTAINERD_TYPE, "sandbox"),
            (MEMORY, "178257920"),
            (CPU_QUOTA, "150000"),
            (CPU_PERIOD, "100000"),
            (CPU_SHARES, "102"),
        ];
        let pod = resources(&annotations(&limited)).unwrap().unwrap();
        let expected = (Some(178_257_920), Some(150_000), Some(100_000), Some(102));
        assert_eq!(seen(&pod), expected);
        let host = on_the_host(&pod);
        assert_eq!(seen(&host), (Some(178_257_920), None, None, Some(102)));

        let unlimited = [
            (CONTAINERD_TYPE, "sandbox"),
            (MEMORY, "0"),
            (CPU_QUOTA, "0"),
            (CPU_PERIOD, "100000"),
            (CPU_SHARES, "2"),
        ];
        let pod = resources(&annotations(&unlimited)).unwrap().unwrap();
        assert_eq!(seen(&pod), (None, None, Some(100_000), Some(2)));
        let old = annotations(&[(CONTAINERD_TYPE, "sandbox")]);
        assert_eq!(
            seen(&resources(&old).unwrap().unwrap()),
            (None, None, None, None)
        );
    }

    #[test]
    fn cri_o_s_json_is_the_pod_s() {
        let text = r#"{"cpu_period":100000,"cpu_quota":50000,"cpu_shares":512,
                       "memory_limit_in_bytes":67108864,"oom_score_adj":3}"#;
        for name in CRIO_RESOURCES {
            let pod = annotations(&[(CRIO_TYPE, "sandbox"), (name, text)]);
            let pod = resources(&pod).unwrap().unwrap();
            let expected = (Some(67_108_864), Some(50_000), Some(100_000), Some(512));
            assert_eq!(seen(&pod), expected);
        }
        for empty in ["null", "{}"] {
            let pod = annotations(&[(CRIO_TYPE, "sandbox"), (CRIO_RESOURCES[0], empty)]);
            let pod = resources(&pod).unwrap().unwrap();
            assert_eq!(seen(&pod), (None, None, None, None));
        }
    }

    #[test]
    fn other_containers_have_their_own_limits() {
        for pairs in [
            &[][..],
            &[(CONTAINERD_TYPE, "container"), (MEMORY, "1")],
            &[(CRIO_TYPE, "container"), (CRIO_RESOURCES[0], "{}")],
            &[(CRIO_TYPE, "sandbox")],
            &[(MEMORY, "1")],
        ] {
            assert_eq!(resources(&annotations(pairs)).unwrap(), None);
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for (kind, key, value, expected) in [
            (
                CONTAINERD_TYPE,
                MEMORY,
                "64Mi",
                r#"annotations.io.kubernetes.cri.sandbox-memory: "64Mi" is not a number of its kind"#,
            ),
            (
                CONTAINERD_TYPE,
                CPU_SHARES,
                "-1",
                r#"annotations.io.kubernetes.cri.sandbox-cpu-shares: "-1" is not a number of its kind"#,
            ),
            (
                CRIO_TYPE,
                CRIO_RESOURCES[0],
                "[1]",
                r#"annotations.io.kubernetes.cri-o.PodLinuxResources: "[1]" is not CRI resources"#,
            ),
        ] {
            let pod = annotations(&[(kind, "sandbox"), (key, value)]);
            assert_eq!(resources(&pod).unwrap_err().to_string(), expected);
        }
    }
}
