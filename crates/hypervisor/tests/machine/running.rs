//! Machines while they run.

use std::{fs, time::Duration};

use casemate_hypervisor::ThreadRole;

use crate::guest::{CONSOLE_LIMIT, Stage};

pub(crate) async fn a_paused_guest_stands_still(stage: &Stage) {
    let vm = stage.boot(stage.spec("idle")).await;
    vm.pause().await.unwrap();
    let before = vm.metrics().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = vm.metrics().unwrap();
    let used = after.cpu_time - before.cpu_time;
    assert!(used < Duration::from_millis(100), "{used:?}");
    assert!(after.pss_bytes > 1 << 20);
    assert!(!stage.console().contains("READY"));
    vm.resume().await.unwrap();
    stage.said("READY").await;
}

pub(crate) async fn a_flooded_console_stays_small(stage: &Stage) {
    let _vm = stage.boot(stage.spec("flood")).await;
    stage.said("line 999 of many").await;
    let length = stage.console().len() as u64;
    assert!(
        (CONSOLE_LIMIT / 2..=CONSOLE_LIMIT).contains(&length),
        "{length}"
    );
}

pub(crate) async fn several_processors_run(stage: &Stage) {
    let mut spec = stage.spec("idle");
    spec.vcpus = 2;
    let vm = stage.boot(spec).await;
    stage.said("READY").await;
    let threads = vm.threads().unwrap();
    for index in 0..2 {
        let vcpu = ThreadRole::Vcpu(index);
        let found: Vec<_> = threads
            .iter()
            .filter(|thread| thread.role == vcpu)
            .collect();
        assert_eq!(found.len(), 1, "{threads:?}");
        let status = fs::read_to_string(format!("/proc/{}/status", found[0].tid)).unwrap();
        assert!(
            status.contains(&format!("Tgid:\t{}\n", vm.pid())),
            "{status}"
        );
    }
}
