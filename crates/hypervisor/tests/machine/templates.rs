//! Machines that are saved, and what is made of them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    time::Instant,
};

use casemate_hypervisor::{
    BootSpec, Cause, Device, DeviceId, Error, Hypervisor, Size, TemplateFiles, Vm,
};

use crate::{
    devices::{CONTENT, Devices},
    guest::Stage,
};

/// A machine that can be saved, as it will be restored.
pub(crate) fn spec(stage: &Stage) -> BootSpec {
    let mut spec = stage.spec("clone");
    spec.template = true;
    spec.hotplug_slots = 2;
    spec
}

/// New files of a template.
pub(crate) fn files(stage: &Stage) -> TemplateFiles {
    TemplateFiles {
        state: File::create(stage.path("state")).unwrap(),
        memory: File::create(stage.path("memory")).unwrap(),
    }
}

/// Those that were written.
pub(crate) fn opened(stage: &Stage) -> TemplateFiles {
    TemplateFiles {
        state: File::open(stage.path("state")).unwrap(),
        memory: File::open(stage.path("memory")).unwrap(),
    }
}

/// Boots a machine with sockets, has them taken out, and saves it.
pub(crate) async fn save(stage: &Stage) {
    let devices = Devices::start(stage.path("devices"));
    let mut spec = spec(stage);
    spec.vsock = Some(devices.vsock());
    let vm = stage.boot(spec).await;
    stage.said("WAITS").await;
    let refusal = vm.snapshot(&files(stage)).await.unwrap_err().to_string();
    assert_eq!(
        refusal,
        "the virtual machine cannot be saved: device vsock is plugged"
    );
    vm.unplug(&DeviceId::VSOCK).await.unwrap();
    let gone = vm.unplug(&DeviceId::VSOCK).await.unwrap_err();
    assert!(matches!(gone, Error::NoDevice { .. }), "{gone}");
    let start = Instant::now();
    vm.snapshot(&files(stage)).await.unwrap();
    let memory = fs::metadata(stage.path("memory")).unwrap();
    println!(
        "  saved in {:.1?}: {} KiB of state, {} MiB of memory",
        start.elapsed(),
        fs::metadata(stage.path("state")).unwrap().len() >> 10,
        (memory.blocks() * 512) >> 20
    );
    assert_eq!(memory.len(), 256 << 20);
    assert!(memory.blocks() * 512 < memory.len() / 4, "not sparse");
    vm.kill();
    assert_eq!(vm.exited().await.cause, Cause::Killed);
    drop(devices);
    fs::remove_dir_all(stage.path("devices")).unwrap();
}

/// Restores a machine with files and sockets.
pub(crate) async fn restore(stage: &Stage, devices: &Devices) -> Box<dyn Vm> {
    restore_as(stage, devices, None).await.expect("a clone")
}

async fn restore_as(
    stage: &Stage,
    devices: &Devices,
    grown: Option<Size>,
) -> Result<Box<dyn Vm>, Error> {
    let mut spec = spec(stage);
    spec.grown = grown;
    spec.file_share = Some(devices.file_share());
    spec.vsock = Some(devices.vsock());
    stage.qemu().restore(opened(stage), spec).await
}

pub(crate) async fn clones_go_on_where_the_machine_was_saved(stage: &Stage) {
    save(stage).await;
    let mut said = BTreeSet::new();
    for n in 1..=3 {
        let devices = Devices::start(stage.path(&format!("devices{n}")));
        let start = Instant::now();
        let vm = restore(stage, &devices).await;
        let running = start.elapsed();
        let call = devices.call().await;
        println!(
            "  runs after {running:.1?}, calls after {:.1?}",
            start.elapsed()
        );
        assert!(call.starts_with("random "), "{call}");
        said.insert(call);
        stage.said(&format!("FILE [{CONTENT}]")).await;
        stage.said("GENERATION").await;
        assert!(!stage.console().contains("READY"), "{}", stage.console());
        let again = vm.plug(Device::Vsock(devices.vsock())).await.unwrap_err();
        assert!(matches!(again, Error::NoFreeSlot { .. }), "{again}");
        let unsaved = vm.snapshot(&files_elsewhere(stage)).await.unwrap_err();
        assert!(matches!(unsaved, Error::Plugged { .. }), "{unsaved}");
        vm.kill();
        vm.exited().await;
    }
    assert_eq!(said.len(), 3, "equal random numbers: {said:?}");
}

fn files_elsewhere(stage: &Stage) -> TemplateFiles {
    TemplateFiles {
        state: File::create(stage.path("state2")).unwrap(),
        memory: File::create(stage.path("memory2")).unwrap(),
    }
}

pub(crate) async fn recipes_are_stable_and_tell_machines_apart(stage: &Stage) {
    let recipe = |change: fn(&mut BootSpec)| {
        let mut spec = spec(stage);
        change(&mut spec);
        stage.qemu().recipe(&spec).unwrap()
    };
    let same = recipe(|_| ());
    // The rate of the counter is measured anew.
    fs::remove_file(&stage.settings.facts).unwrap();
    assert_eq!(recipe(|_| ()), same);
    assert_eq!(recipe(|spec| spec.console.limit_bytes += 1), same);
    assert_eq!(recipe(|spec| spec.identity.uid += 1), same);
    let changes: [fn(&mut BootSpec); 4] = [
        |spec| spec.vcpus += 1,
        |spec| spec.memory_mib += 1,
        |spec| spec.hotplug_slots += 1,
        |spec| spec.parameters.clear(),
    ];
    for change in changes {
        assert_ne!(recipe(change), same);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(same.contains(boot.trim()), "{same}");
    assert!(same.contains("QEMU "), "{same}");
}

pub(crate) async fn a_clone_becomes_larger(stage: &Stage) {
    save(stage).await;
    let larger = Size {
        vcpus: 2,
        memory_mib: 1000,
    };
    grow(stage, larger).await.unwrap();

    let less = Size { vcpus: 0, ..larger };
    let refusal = grow(stage, less).await.unwrap_err().to_string();
    let words = "virtual processors: the virtual machine has 1, which cannot become 0";
    assert_eq!(refusal, words);
    let most = stage.qemu().capabilities().grown;
    let more = Size {
        memory_mib: most.memory_mib + 1,
        ..larger
    };
    let refusal = grow(stage, more).await.unwrap_err();
    assert!(matches!(refusal, Error::TooLarge { .. }), "{refusal}");

    // QEMU aborts where a processor comes that finds the buffer full.
    let small = stage.with(|settings| settings.translation_buffer_mib = 8);
    save(&small).await;
    for _ in 0..3 {
        grow(&small, larger).await.unwrap();
    }
}

/// Restores a machine that is larger, and uses what has come.
async fn grow(stage: &Stage, size: Size) -> Result<(), Error> {
    let folder = stage.path("larger");
    let devices = Devices::start(folder.clone());
    // More than it began with, so that what it reads has to lie in what came.
    let large = vec![7_u8; 320 << 20];
    fs::write(devices.share().join("share/large"), &large).unwrap();
    let vm = restore_as(stage, &devices, Some(size)).await;
    if let Ok(vm) = &vm {
        stage.said("PROCESSORS [0-1]").await;
        stage.said("MEMORY [1").await;
        let words = format!("LARGE [{} {}]", large.len(), 7 * large.len());
        stage.said(&words).await;
        devices.call().await;
        vm.kill();
        vm.exited().await;
    }
    drop(devices);
    fs::remove_dir_all(folder).unwrap();
    vm.map(drop)
}
