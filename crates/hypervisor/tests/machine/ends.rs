//! How machines end.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use casemate_hypervisor::{Cause, Error, Hypervisor};
use casemate_linux::{
    process::{pidfd_open, signal_pidfd},
    reactor::register_readable,
};
use nix::libc::SIGKILL;

use crate::{AS_MONITOR, guest::Stage};

pub(crate) async fn a_guest_powers_off(stage: &Stage) {
    let vm = stage.boot(stage.spec("power-off")).await;
    let exit = vm.exited().await;
    assert_eq!(exit.cause, Cause::PowerOff, "{exit}\n{}", stage.console());
    assert!(exit.is_orderly());
    assert!(
        stage.console().contains("READY after"),
        "{}",
        stage.console()
    );
    let again = vm.exited().await;
    assert_eq!(again, exit);
    vm.kill();
    let late = vm.pause().await.unwrap_err();
    assert!(matches!(late, Error::Ended(_)), "{late}");
    let late = vm.metrics().unwrap_err();
    assert!(matches!(late, Error::Ended(_)), "{late}");
}

pub(crate) async fn a_guest_restarts_itself(stage: &Stage) {
    let vm = stage.boot(stage.spec("restart")).await;
    let exit = vm.exited().await;
    assert_eq!(exit.cause, Cause::Reset, "{exit}\n{}", stage.console());
}

pub(crate) async fn a_panic_is_told(stage: &Stage) {
    let vm = stage.boot(stage.spec("panic")).await;
    let exit = vm.exited().await;
    let words = "the guest's kernel failed: Attempted to kill init! exitcode=0x00000000";
    assert_eq!(exit.to_string(), words, "{}", stage.console());
    assert!(!exit.is_orderly());
}

pub(crate) async fn kill_and_drop_end_the_machine(stage: &Stage) {
    let vm = stage.boot(stage.spec("idle")).await;
    vm.kill();
    assert_eq!(vm.exited().await.cause, Cause::Killed);

    let vm = stage.boot(stage.spec("idle")).await;
    let pid = vm.pid();
    drop(vm);
    gone(pid).await;

    let qemu = stage.qemu();
    let unfinished = qemu.boot(stage.spec("idle"));
    let before = children();
    assert!(
        tokio::time::timeout(Duration::from_millis(5), unfinished)
            .await
            .is_err()
    );
    for child in children().iter().filter(|child| !before.contains(child)) {
        gone(*child).await;
    }
}

pub(crate) async fn a_foreign_kill_is_told(stage: &Stage) {
    let vm = stage.boot(stage.spec("idle")).await;
    signal_pidfd(pidfd_open(vm.pid()).unwrap().as_fd(), SIGKILL).unwrap();
    let start = Instant::now();
    let exit = vm.exited().await;
    assert!(start.elapsed() < Duration::from_secs(1), "noticed late");
    assert_eq!(
        exit.to_string(),
        "the virtual machine monitor killed by signal 9"
    );
    assert!(!exit.is_orderly());
}

pub(crate) async fn the_machine_dies_with_its_monitor(_stage: &Stage) {
    let mut monitor = Command::new(std::env::current_exe().unwrap())
        .arg(AS_MONITOR)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = monitor.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let machine = pidfd_open(line.trim().parse().unwrap()).unwrap();
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    let machine = register_readable(machine).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), machine.readable()).await;
    assert!(ended.is_ok(), "QEMU outlived its monitor");
}

/// The other half: starts a machine, says its process id, and waits to be killed.
pub(crate) async fn as_monitor(stage: &Stage) {
    let vm = stage.boot(stage.spec("idle")).await;
    println!("{}", vm.pid());
    std::future::pending().await
}

fn children() -> Vec<u32> {
    let list = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Waits until a process is no more.
async fn gone(pid: u32) {
    let gone = async {
        while Path::new(&format!("/proc/{pid}")).exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(5), gone)
            .await
            .is_ok(),
        "{pid} lives on"
    );
}
