//! Annotations that are followed, and those that are not.

use proptest::prelude::*;

use super::*;
use crate::{Accelerator, CachePolicy};

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = pairs
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()));
    owned.collect()
}

fn permissive() -> Config {
    let mut config = Config::default();
    let all = crate::keys::PER_POD.iter().map(|(key, _)| match *key {
        "guest.kernel" | "guest.initrd" => format!("{key}=/opt/*"),
        key => key.to_owned(),
    });
    config.pod.annotations = all.collect();
    config
}

fn with(config: Config, pairs: &[(&str, &str)]) -> Result<Config, String> {
    let result = config.with_annotations(&annotations(pairs));
    let (config, warnings) = result.map_err(|error| error.to_string())?;
    assert_eq!(warnings, Vec::<String>::new());
    Ok(config)
}

#[test]
fn every_key_for_pods_is_read_as_in_a_file() {
    let config = with(
        permissive(),
        &[
            ("casemate.io/vmm.accelerator", "emulated"),
            ("casemate.io/vmm.min_tier", "nested"),
            ("casemate.io/vmm.boot_timeout_s", "90"),
            ("casemate.io/vmm.console_log_kib", "8"),
            ("casemate.io/qemu.translation_buffer_mib", "128"),
            ("casemate.io/machine.vcpus", "2"),
            ("casemate.io/machine.memory_mib", "512"),
            ("casemate.io/machine.hotplug_slots", "8"),
            ("casemate.io/guest.kernel", "/opt/vmlinux"),
            ("casemate.io/guest.initrd", "/opt/initrd"),
            ("casemate.io/guest.kernel_parameters", "quiet"),
            ("casemate.io/share.cache", "never"),
            ("casemate.io/agent.timeout_s", "60"),
            ("io.kubernetes.cri.container-type", "sandbox"),
            ("casemate.iox/unknown", "of somebody else"),
        ],
    );
    let mut expected = permissive();
    expected.vmm.accelerator = Accelerator::Emulated;
    expected.vmm.min_tier = Tier::Nested;
    expected.vmm.boot_timeout_s = 90;
    expected.vmm.console_log_kib = 8;
    expected.qemu.translation_buffer_mib = 128;
    expected.machine.vcpus = 2;
    expected.machine.memory_mib = 512;
    expected.machine.hotplug_slots = 8;
    expected.guest.kernel = "/opt/vmlinux".into();
    expected.guest.initrd = "/opt/initrd".into();
    expected.guest.kernel_parameters = "quiet".into();
    expected.share.cache = CachePolicy::Never;
    expected.agent.timeout_s = 60;
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn refusals_say_key_value_reason_and_cure() {
    let cases = [
        (
            ("casemate.io/machine.vcpus", "0"),
            r#"annotation "casemate.io/machine.vcpus" = "0": expected an integer from 1 to 255"#,
        ),
        (
            ("casemate.io/machine.vcpu", "2"),
            r#"annotation "casemate.io/machine.vcpu" = "2": unknown key; did you mean casemate.io/machine.vcpus?"#,
        ),
        (
            ("casemate.io/", "2"),
            r#"annotation "casemate.io/" = "2": unknown key"#,
        ),
        (
            ("casemate.io/qemu.path", "/bin/sh"),
            r#"annotation "casemate.io/qemu.path" = "/bin/sh": qemu.path is for the host's configuration alone; remove the annotation"#,
        ),
        (
            ("casemate.io/guest.kernel_parameters", "quiet"),
            r#"annotation "casemate.io/guest.kernel_parameters" = "quiet": this host does not let pods set guest.kernel_parameters; remove the annotation, or allow it with "guest.kernel_parameters" in pod.annotations of /etc/casemate/config.toml"#,
        ),
        (
            ("io.katacontainers.config.hypervisor.default_vcpus", "1000"),
            r#"annotation "io.katacontainers.config.hypervisor.default_vcpus" = "1000": expected an integer from 1 to 255"#,
        ),
        (
            ("casemate.io/share.cache", "a\nb"),
            r#"annotation "casemate.io/share.cache" = "a\nb": expected "auto", "always" or "never""#,
        ),
    ];
    for (pair, expected) in cases {
        assert_eq!(with(Config::default(), &[pair]).unwrap_err(), expected);
    }
    let file = ("casemate.io/guest.initrd", "/opt/initrd");
    let refusal = with(Config::default(), &[file]).unwrap_err();
    assert!(
        refusal.contains(r#"with "guest.initrd=/FOLDER/*" in"#),
        "{refusal}"
    );
    let file = ("casemate.io/guest.initrd", "/opt/../etc/shadow");
    assert_eq!(
        with(permissive(), &[file]).unwrap_err(),
        r#"annotation "casemate.io/guest.initrd" = "/opt/../etc/shadow": this host lets pods set guest.initrd to /opt/* only (pod.annotations of /etc/casemate/config.toml)"#,
    );
}

#[test]
fn a_pod_cannot_weaken_its_isolation() {
    let mut config = Config::default();
    config.vmm.min_tier = Tier::Nested;
    let ask = |tier| with(config.clone(), &[("casemate.io/vmm.min_tier", tier)]);
    assert_eq!(ask("kvm").unwrap().vmm.min_tier, Tier::Kvm);
    assert_eq!(
        ask("emulated").unwrap_err(),
        r#"annotation "casemate.io/vmm.min_tier" = "emulated": this host demands at least nested (vmm.min_tier); a pod can only ask for more"#
    );
}

#[test]
fn kernel_parameters_come_behind_those_of_the_host() {
    let mut config = permissive();
    config.guest.kernel_parameters = "mitigations=auto".to_owned();
    let key = "casemate.io/guest.kernel_parameters";
    let kata = "io.katacontainers.config.hypervisor.kernel_params";
    let set = with(config.clone(), &[(key, "quiet"), (kata, "debug")]).unwrap();
    assert_eq!(set.guest.kernel_parameters, "mitigations=auto debug quiet");
    let long = "x".repeat(1020);
    assert!(
        with(config, &[(key, &long)])
            .unwrap_err()
            .contains("at most 1024")
    );
}

#[test]
fn kata_s_keys_mean_the_same_or_are_a_warning() {
    let prefix = "io.katacontainers.config";
    let pairs = [
        (format!("{prefix}.hypervisor.default_vcpus"), "1.5"),
        (format!("{prefix}.hypervisor.default_memory"), "2048"),
        (format!("{prefix}.hypervisor.virtio_fs_cache"), "never"),
        (format!("{prefix}.hypervisor.machine_type"), "q35"),
        (format!("{prefix}.hypervisor.unheard_of"), "x"),
        ("casemate.io/machine.memory_mib".to_owned(), "512"),
    ];
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    let result = Config::default().with_annotations(&annotations(&pairs));
    let (config, warnings) = result.unwrap();
    assert_eq!(config.machine.vcpus, 2);
    assert_eq!(config.machine.memory_mib, 512);
    assert_eq!(config.share.cache, CachePolicy::Never);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("machine_type"), "{warnings:?}");
    assert!(warnings[1].contains("unheard_of"), "{warnings:?}");
}

proptest! {
    /// Whatever a stranger writes: an answer, of one line.
    #[test]
    fn any_annotation_is_taken_or_refused_in_one_line(
        key in "(casemate.io/|io.katacontainers.config.hypervisor.)(guest.kernel|kernel|machine.vcpus|\\PC{0,9})",
        value in "\\PC{0,100}|[\\s\\S]{0,5}",
    ) {
        match permissive().with_annotations(&annotations(&[(&key, &value)])) {
            Ok((_, warnings)) => prop_assert!(warnings.iter().all(|line| !line.contains('\n'))),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
