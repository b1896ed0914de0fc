use std::{fs, path::Path};

use super::*;
use crate::qemu::kernel_line::parameters;

/// Compares with a golden file; with `CASEMATE_BLESS` set, writes it.
fn golden(name: &str, plan: &Plan) {
    let arguments = arguments(plan);
    let words = arguments.iter().map(|word| word.to_str().unwrap());
    let mut text = String::new();
    for word in words {
        // One option a line, with its value.
        let option = word.starts_with('-');
        text.push_str(if text.is_empty() {
            ""
        } else if option {
            "\n"
        } else {
            " "
        });
        text.push_str(word);
    }
    text.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("CASEMATE_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text,
        expected,
        "{}: set CASEMATE_BLESS=1 to accept",
        path.display()
    );
}

fn plan(accelerator: Accelerator, prefix: &str) -> Plan {
    let mut parameters = parameters(accelerator, 1, Some(2_100_000));
    parameters.push(Parameter::known("casemate.example=1"));
    Plan {
        accelerator,
        merge_memory: false,
        vcpus: 1,
        memory_mib: 256,
        hotplug_slots: 0,
        template: None,
        firmware: Firmware {
            folders: vec![Path::new(prefix).join("share/qemu")],
            has_qboot: true,
        },
        parameters,
        sockets: Sockets {
            control: 3,
            console: 4,
            file_share: Some(("share,1".to_owned(), 5)),
            vsock: Some(6),
        },
    }
}

const EMULATION: Accelerator = Accelerator::Emulation {
    translation_buffer_mib: 32,
};

#[test]
fn emulated_machine() {
    golden("emulated.txt", &plan(EMULATION, "/usr"));
}

#[test]
fn a_translated_machine_could_always_have_two_processors() {
    let mut plan = plan(EMULATION, "/usr");
    assert_eq!(processors(&plan), "1,maxcpus=2");
    plan.vcpus = 2;
    assert_eq!(processors(&plan), "2");
    plan.vcpus = 1;
    plan.accelerator = Accelerator::Kvm;
    assert_eq!(processors(&plan), "1");
}

#[test]
fn machine_for_a_template() {
    let mut plan = plan(EMULATION, "/usr");
    plan.hotplug_slots = 1;
    plan.sockets.file_share = None;
    let mut template = Template {
        most: Size {
            vcpus: 4,
            memory_mib: 8192,
        },
        restored: false,
    };
    plan.template = Some(template);
    golden("template.txt", &plan);
    plan.sockets.vsock = None;
    template.restored = true;
    plan.template = Some(template);
    golden("restored.txt", &plan);
    template.most = Size {
        vcpus: 1,
        memory_mib: 256,
    };
    plan.template = Some(template);
    assert_eq!(processors(&plan), "1,maxcpus=2");
    assert_eq!(memory_size(&plan), "256M");
}

#[test]
fn machine_on_kvm() {
    let mut plan = plan(Accelerator::Kvm, "/usr");
    plan.vcpus = 4;
    plan.hotplug_slots = 2;
    plan.merge_memory = true;
    plan.parameters = parameters(Accelerator::Kvm, 4, None);
    golden("kvm.txt", &plan);
}

#[test]
fn machine_without_devices_in_a_program_elsewhere() {
    let mut plan = plan(EMULATION, "/opt/qemu");
    plan.firmware.folders.push("/opt/qemu/share/seabios".into());
    plan.firmware.has_qboot = false;
    plan.sockets.file_share = None;
    plan.sockets.vsock = None;
    golden("bare.txt", &plan);
}
