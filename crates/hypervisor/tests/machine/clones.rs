//! Machines that are not restored, or not saved: it is said in one line, and
//! nothing stays behind.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    time::Duration,
};

use casemate_hypervisor::{Error, Hypervisor};
use casemate_linux::process::{pidfd_open, signal_pidfd};
use nix::libc::SIGKILL;

use crate::{
    guest::Stage,
    templates::{files, opened, save, spec},
};

/// What a failed start could leave. Mounts are in namespaces of processes.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    children: String,
    descriptors: usize,
}

impl Traces {
    fn now() -> Self {
        Self {
            children: fs::read_to_string("/proc/thread-self/children").unwrap(),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }

    /// Waits until everything is as it was: what was killed has to be reaped.
    async fn gone(&self) {
        for _ in 0..500 {
            if Self::now() == *self {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(Self::now(), *self);
    }
}

pub(crate) async fn broken_templates_are_refused(stage: &Stage) {
    save(stage).await;
    let before = Traces::now();
    let state = fs::read(stage.path("state")).unwrap();
    let refusal = async || {
        let restored = stage.qemu().restore(opened(stage), spec(stage)).await;
        let error = restored.map(drop).unwrap_err();
        assert!(matches!(error, Error::Template { .. }), "{error:?}");
        let text = error.to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    for length in [0, 1, 1000, state.len() / 2] {
        fs::write(stage.path("state"), &state[..length]).unwrap();
        let text = refusal().await;
        println!("  {length} bytes: {text}");
        assert!(text.starts_with("template: state: "), "{text}");
    }
    fs::write(stage.path("state"), vec![b'x'; state.len()]).unwrap();
    println!("  {}", refusal().await);
    fs::write(stage.path("state"), &state).unwrap();

    let memory = File::options()
        .write(true)
        .open(stage.path("memory"))
        .unwrap();
    memory.set_len(255 << 20).unwrap();
    let words = "template: memory: the image has 267386880 bytes, the machine 268435456";
    assert_eq!(refusal().await, words);
    memory.set_len(256 << 20).unwrap();
    drop(memory);

    // The state has one more slot.
    let mut other = spec(stage);
    other.hotplug_slots -= 1;
    let restored = stage.qemu().restore(opened(stage), other).await;
    let text = restored.map(drop).unwrap_err().to_string();
    println!("  {text}");
    assert!(text.starts_with("template: state: "), "{text}");
    let mut other = spec(stage);
    other.template = false;
    let restored = stage.qemu().restore(opened(stage), other).await;
    let words = "template: the machine is not one for templates";
    assert_eq!(restored.map(drop).unwrap_err().to_string(), words);
    before.gone().await;
}

pub(crate) async fn a_kill_leaves_nothing_of_a_restore(stage: &Stage) {
    save(stage).await;
    let before = Traces::now();
    let mut refused = 0;
    for wait in (0..120).step_by(6).map(Duration::from_millis) {
        let qemu = stage.qemu();
        let kill = async {
            tokio::time::sleep(wait).await;
            kill_qemu(&before);
        };
        let (restored, ()) = tokio::join!(qemu.restore(opened(stage), spec(stage)), kill);
        match restored {
            Ok(vm) => drop(vm),
            Err(error) => {
                let text = error.to_string();
                assert_eq!(text.lines().count(), 1, "{text}");
                assert!(text.contains("signal 9"), "{text}");
                refused += 1;
            }
        }
        before.gone().await;
    }
    println!("  {refused} of 20 were killed before they ran");
    assert!(refused > 0);

    // A caller that waits no longer.
    for wait in (1..60).step_by(7).map(Duration::from_millis) {
        let qemu = stage.qemu();
        let restored = qemu.restore(opened(stage), spec(stage));
        let _ = tokio::time::timeout(wait, restored).await;
        before.gone().await;
    }
}

pub(crate) async fn a_kill_leaves_nothing_of_a_snapshot(stage: &Stage) {
    let before = Traces::now();
    for wait in [0, 1, 2, 3, 4, 6].map(Duration::from_millis) {
        let vm = stage.boot(spec(stage)).await;
        stage.said("WAITS").await;
        let files = files(stage);
        let kill = async {
            tokio::time::sleep(wait).await;
            kill_qemu(&before);
        };
        let (saved, ()) = tokio::join!(vm.snapshot(&files), kill);
        if let Err(error) = saved {
            println!("  after {wait:?}: {error}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
        drop((vm, files));
        before.gone().await;
    }

    let vm = stage.boot(spec(stage)).await;
    let mut files = files(stage);
    files.memory = File::open(stage.path("memory")).unwrap();
    let error = vm.snapshot(&files).await.unwrap_err().to_string();
    assert_eq!(error, "template: memory: Invalid argument (os error 22)");
    drop((vm, files));
    let vm = stage.boot(stage.spec("idle")).await;
    let unsaved = vm.snapshot(&crate::templates::files(stage)).await;
    let words = "template: the machine was not started for one";
    assert_eq!(unsaved.unwrap_err().to_string(), words);
    drop(vm);
    before.gone().await;
}

/// Kills the first process that was not there before: QEMU.
fn kill_qemu(before: &Traces) {
    let known: Vec<&str> = before.children.split_whitespace().collect();
    let now = Traces::now().children;
    let mut fresh = now.split_whitespace().filter(|pid| !known.contains(pid));
    let process = fresh
        .next()
        .and_then(|pid| pidfd_open(pid.parse().ok()?).ok());
    if let Some(process) = process {
        // It may have ended meanwhile.
        let _ = signal_pidfd(process.as_fd(), SIGKILL);
    }
}
