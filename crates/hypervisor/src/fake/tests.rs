use std::path::Path;

use super::*;
use crate::{ConsoleLog, Identity};

fn spec(directory: &Path) -> BootSpec {
    BootSpec {
        kernel: "kernel".into(),
        initrd: "initrd".into(),
        parameters: Vec::new(),
        vcpus: 1,
        memory_mib: 64,
        hotplug_slots: 1,
        template: true,
        grown: None,
        counted: None,
        file_share: None,
        vsock: None,
        console: ConsoleLog {
            path: directory.join("console.log"),
            limit_bytes: 4096,
        },
        netns: None,
        identity: Identity { uid: 1, gid: 1 },
    }
}

fn vsock() -> Device {
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = socket.into();
    Device::Vsock(crate::Vsock { socket })
}

/// New files of a template.
fn files(directory: &Path) -> TemplateFiles {
    let create = |name| File::create(directory.join(name)).unwrap();
    TemplateFiles {
        state: create("state"),
        memory: create("memory"),
    }
}

/// Those that were written.
fn opened(directory: &Path) -> TemplateFiles {
    let open = |name| File::open(directory.join(name)).unwrap();
    TemplateFiles {
        state: open("state"),
        memory: open("memory"),
    }
}

/// Uses every step once.
async fn use_machine(fake: &Fake, directory: &Path) -> Result<(), Error> {
    let recipe = fake.recipe(&spec(directory))?;
    let vm = fake.boot(spec(directory)).await?;
    vm.pause().await?;
    vm.resume().await?;
    vm.threads()?;
    vm.metrics()?;
    let files = files(directory);
    let vsock = vm.plug(vsock()).await?;
    assert_eq!(vsock, DeviceId::VSOCK);
    vm.unplug(&vsock).await?;
    vm.snapshot(&files).await?;
    vm.kill();
    assert_eq!(vm.exited().await.cause, Cause::Killed);
    assert_eq!(fake.recipe(&spec(directory))?, recipe);
    let restored = fake.restore(opened(directory), spec(directory)).await;
    restored.map(drop)
}

#[tokio::test]
async fn every_step_fails_once() {
    let directory = tempfile::tempdir().unwrap();
    let sound = Fake::new();
    use_machine(&sound, directory.path()).await.unwrap();
    assert_eq!(sound.steps(), 15);
    for step in 1..=sound.steps() {
        let fake = Fake::failing_at(step);
        let error = use_machine(&fake, directory.path()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("injected failure at step {step}")
        );
    }
}

#[tokio::test]
async fn a_guest_can_end_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let vm = fake.boot(spec(directory.path())).await.unwrap();
    let process = format!("/proc/{}", vm.pid());
    assert!(Path::new(&process).exists());
    fake.end_guests(&Cause::PowerOff);
    vm.kill();
    assert_eq!(vm.exited().await.cause, Cause::PowerOff);
    assert!(!Path::new(&process).exists());
}

#[tokio::test]
async fn a_machine_is_saved_without_devices_only() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let vm = fake.boot(spec(directory.path())).await.unwrap();
    vm.plug(vsock()).await.unwrap();
    let second = vm.plug(vsock()).await.unwrap_err();
    assert!(matches!(second, Error::NoFreeSlot { .. }), "{second}");
    let files = files(directory.path());
    let refusal = vm.snapshot(&files).await.unwrap_err().to_string();
    assert_eq!(
        refusal,
        "the virtual machine cannot be saved: device vsock is plugged"
    );
    vm.unplug(&DeviceId::VSOCK).await.unwrap();
    vm.snapshot(&files).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_is_to_be_saved_boots_without_files() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut spec = spec(directory.path());
    spec.file_share = Some(crate::FileShare {
        tag: "files".to_owned(),
        socket: socket.into(),
    });
    let refused = Fake::new().boot(spec).await.map(drop).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "device: a machine that is to be saved boots without shared files"
    );
}

#[tokio::test]
async fn broken_files_start_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let vm = fake.boot(spec(directory.path())).await.unwrap();
    vm.snapshot(&files(directory.path())).await.unwrap();
    let refusal = async |spec| {
        let restored = fake.restore(opened(directory.path()), spec).await;
        restored.map(drop).unwrap_err().to_string()
    };
    let mut larger = spec(directory.path());
    larger.memory_mib += 1;
    let words = "template: memory: not as large as the machine's";
    assert_eq!(refusal(larger).await, words);
    std::fs::write(directory.path().join("state"), "a fake").unwrap();
    let words = "template: state: not written by this program";
    assert_eq!(refusal(spec(directory.path())).await, words);
}

#[tokio::test]
async fn machines_only_grow_and_when_they_are_restored() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::new();
    let spec = |vcpus| BootSpec {
        grown: Some(Size {
            vcpus,
            memory_mib: 128,
        }),
        ..spec(directory.path())
    };
    let refusal = fake.boot(spec(2)).await.map(drop).unwrap_err();
    let words = "device: a machine that boots does not grow";
    assert_eq!(refusal.to_string(), words);
    let vm = fake
        .boot(super::tests::spec(directory.path()))
        .await
        .unwrap();
    vm.snapshot(&files(directory.path())).await.unwrap();
    let restored = async |vcpus| {
        let restored = fake.restore(opened(directory.path()), spec(vcpus)).await;
        restored.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(restored(2).await, Ok(()));
    let words = "virtual processors: the virtual machine has 1, which cannot become 0";
    assert_eq!(restored(0).await, Err(words.to_owned()));
    let words = "virtual processors: 9 asked for, at most 8 possible";
    assert_eq!(restored(9).await, Err(words.to_owned()));
}
