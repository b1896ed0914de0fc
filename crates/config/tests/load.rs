//! Reading configuration files: layers, refusals and what they say.

use std::path::Path;

use casemate_config::{Accelerator, CachePolicy, Config, Error, LogLevel, Tier};
use proptest::prelude::*;

fn load(text: &str) -> Result<Config, Error> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(Some(&file))
}

/// The error's text with only the file's name of its path.
fn refusal(text: &str) -> String {
    let message = load(text).expect_err(text).to_string();
    let start = message.find("config.toml").unwrap();
    message[start..].to_owned()
}

#[test]
fn keys_are_read() {
    let config = load(
        r#"
        [vmm]
        accelerator = "emulated"
        min_tier = "nested"

        [qemu]
        path = "/opt/qemu/bin/qemu-system-x86_64"

        [machine]
        vcpus = 0x2
        memory_mib = 1_024

        [guest]
        kernel_parameters = "debug quiet"

        [share]
        cache = "never"

        [pod]
        annotations = ["machine.vcpus", "guest.kernel=/opt/kernels/*"]

        [log]
        level = "debug"
        "#,
    )
    .unwrap();
    let mut expected = Config::default();
    expected.vmm.accelerator = Accelerator::Emulated;
    expected.vmm.min_tier = Tier::Nested;
    expected.qemu.path = "/opt/qemu/bin/qemu-system-x86_64".into();
    expected.machine.vcpus = 2;
    expected.machine.memory_mib = 1024;
    expected.guest.kernel_parameters = "debug quiet".into();
    expected.share.cache = CachePolicy::Never;
    expected.pod.annotations = vec!["machine.vcpus".into(), "guest.kernel=/opt/kernels/*".into()];
    expected.log.level = LogLevel::Debug;
    assert_eq!(config, expected);
}

#[test]
fn refusals_name_line_and_remedy() {
    let cases = [
        (
            "[machine]\nmemroy_mib = 512\n",
            r#"config.toml:2: unknown key "machine.memroy_mib"; did you mean "machine.memory_mib"?"#,
        ),
        (
            "\n\n[machnie]\nvcpus = 2\n",
            r#"config.toml:3: unknown table "machnie"; did you mean "machine"?"#,
        ),
        (
            "[shre]\n",
            r#"config.toml:1: unknown table "shre"; did you mean "share"?"#,
        ),
        (
            "vcpus = 2\n",
            r#"config.toml:1: unknown key "vcpus"; did you mean "machine.vcpus"?"#,
        ),
        (
            "machine = 2\n",
            r#"config.toml:1: machine = 2: expected a table"#,
        ),
        (
            "[vmm]\ncolour = 2\n",
            r#"config.toml:2: unknown key "vmm.colour""#,
        ),
        (
            "[machine]\nvcpus = 0\n",
            "config.toml:2: machine.vcpus = 0: expected an integer from 1 to 255",
        ),
        (
            "[machine]\nvcpus = -1\n",
            "config.toml:2: machine.vcpus = -1: expected an integer from 1 to 255",
        ),
        (
            "[machine]\n# two\nvcpus = \"two\"\n",
            "config.toml:3: machine.vcpus = \"two\": expected an integer from 1 to 255",
        ),
        (
            "[machine]\nmemory_mib = 99999999999999999999\n",
            "config.toml:2: machine.memory_mib = 99999999999999999999: \
             expected an integer from 64 to 1048576",
        ),
        (
            "[guest]\nkernel = \"vmlinux\"\n",
            "config.toml:2: guest.kernel = \"vmlinux\": expected an absolute path",
        ),
        (
            "[guest]\nkernel_parameters = \"a\\nb\"\n",
            "config.toml:2: guest.kernel_parameters = \"a\\nb\": \
             expected one line of printable ASCII, at most 1024 characters",
        ),
        (
            "[vmm]\nmin_tier = \"strong\"\n",
            "config.toml:2: vmm.min_tier = \"strong\": \
             expected \"emulated\", \"nested\" or \"kvm\"",
        ),
        (
            "[pod]\nannotations = [\"machine.vcpus\", \"qemu.path\"]\n",
            "config.toml:2: pod.annotations = [\"machine.vcpus\", \"qemu.path\"]: expected a list of \
             \"vmm.accelerator\", \"vmm.min_tier\", \"vmm.boot_timeout_s\", \
             \"vmm.console_log_kib\", \"qemu.translation_buffer_mib\", \"machine.vcpus\", \
             \"machine.memory_mib\", \"machine.hotplug_slots\", \"template.mode\", \
             \"guest.kernel=/…\", \"guest.initrd=/…\", \"guest.kernel_parameters\", \
             \"share.cache\", \"agent.timeout_s\"",
        ),
        (
            "[vmm]\nhypervisor = [\n  1,\n  2]\n",
            "config.toml:2: vmm.hypervisor = [ 1, 2]: expected \"qemu\"",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(text), expected);
    }
}

#[test]
fn the_first_mistake_is_reported() {
    let text = "[vmm]\nzzz = 1\naaa = 1\n[agent]\nbbb = 1\n";
    assert_eq!(refusal(text), r#"config.toml:2: unknown key "vmm.zzz""#);
}

#[test]
fn broken_toml_is_one_line_with_its_place() {
    let message = refusal("[vmm]\nmin_tier = \"kvm\n");
    assert!(
        message.starts_with("config.toml:2: not valid TOML: "),
        "{message}"
    );
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_named_file_must_exist() {
    let error = Config::load(Some(Path::new("/nonexistent/casemate.toml"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read configuration /nonexistent/casemate.toml: \
         No such file or directory (os error 2)"
    );
}

#[test]
fn drop_ins_apply_in_name_order_key_by_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let drop_ins = directory.path().join("config.d");
    std::fs::create_dir(&drop_ins).unwrap();
    std::fs::write(&file, "[machine]\nvcpus = 2\nmemory_mib = 512\n").unwrap();
    std::fs::write(drop_ins.join("20-b.toml"), "[machine]\nvcpus = 4\n").unwrap();
    std::fs::write(
        drop_ins.join("10-a.toml"),
        "[machine]\nvcpus = 3\n[log]\nlevel = \"warn\"\n",
    )
    .unwrap();
    std::fs::write(drop_ins.join("30-c.toml.bak"), "nonsense").unwrap();

    let config = Config::load_layers(&file, &drop_ins).unwrap();
    assert_eq!(config.machine.vcpus, 4);
    assert_eq!(config.machine.memory_mib, 512);
    assert_eq!(config.log.level, LogLevel::Warn);
}

#[test]
fn missing_files_are_the_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::load_layers(
        &directory.path().join("none"),
        &directory.path().join("none.d"),
    );
    assert_eq!(config.unwrap(), Config::default());
}

#[test]
fn a_broken_drop_in_is_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("50-x.toml"), "[vmm]\nmin_teir = 1\n").unwrap();
    let error = Config::load_layers(&directory.path().join("none"), directory.path()).unwrap_err();
    let message = error.to_string();
    assert!(
        message
            .ends_with(r#"50-x.toml:2: unknown key "vmm.min_teir"; did you mean "vmm.min_tier"?"#),
        "{message}"
    );
}

#[test]
fn a_resolved_configuration_survives_json() {
    let mut config = Config::default();
    config.vmm.min_tier = Tier::Kvm;
    config.guest.kernel = "/boot/guest kernel".into();
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
}

#[test]
fn tiers_are_ordered_by_strength() {
    assert!(Tier::Emulated < Tier::Nested && Tier::Nested < Tier::Kvm);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_in_one_line(text in "(\\[(vmm|x|log)\\]\n)?[a-z_.]{0,9} ?= ?[\\PC\n]{0,20}") {
        if let Err(error) = load(&text) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
