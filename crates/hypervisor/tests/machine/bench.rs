//! `cargo test -p casemate-hypervisor --test machine bench`: how long a start
//! takes and what an idle machine costs.

use std::time::{Duration, Instant};

use casemate_hypervisor::Hypervisor;

use crate::{
    devices::Devices,
    guest::Stage,
    templates::{self, save},
};

const RUNS: usize = 7;

/// How long a clone takes until it runs, and until its guest has called the host.
async fn restore(stage: &Stage) {
    save(stage).await;
    let mut rows = Vec::new();
    for n in 0..2 * RUNS {
        let devices = Devices::start(stage.path(&format!("bench{n}")));
        let start = Instant::now();
        let vm = templates::restore(stage, &devices).await;
        let running = start.elapsed();
        devices.call().await;
        let called = start.elapsed();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let metrics = vm.metrics().expect("metrics");
        vm.kill();
        vm.exited().await;
        rows.push((called, running, metrics));
    }
    rows.sort_by_key(|(called, ..)| *called);
    let ((least, ..), (called, running, metrics)) = (rows[0], rows[RUNS]);
    println!(
        "restored: runs after {running:.1?}, calls after {called:.1?}, at best {least:.1?}, \
         processor {:?}, PSS {} MiB",
        metrics.cpu_time,
        metrics.pss_bytes >> 20
    );
}

pub(crate) async fn run(stage: &Stage) {
    let start = Instant::now();
    let qemu = stage.qemu();
    let first = start.elapsed();
    let start = Instant::now();
    stage.qemu();
    println!("{:?}", qemu.capabilities());
    println!(
        "open: first {first:.1?}, remembered {:.1?}",
        start.elapsed()
    );
    restore(stage).await;
    for slots in [0, 8] {
        let mut rows = Vec::new();
        for _ in 0..RUNS {
            let mut spec = stage.spec("idle");
            spec.hotplug_slots = slots;
            let start = Instant::now();
            let vm = qemu.boot(spec).await.expect("a machine");
            let answered = start.elapsed();
            stage.said("READY").await;
            let ready = start.elapsed();
            let busy = vm.metrics().expect("metrics");
            tokio::time::sleep(Duration::from_millis(500)).await;
            let idle = vm.metrics().expect("metrics");
            vm.kill();
            vm.exited().await;
            rows.push([
                answered.as_secs_f64() * 1e3,
                ready.as_secs_f64() * 1e3,
                busy.cpu_time.as_secs_f64() * 1e3,
                (idle.cpu_time - busy.cpu_time).as_secs_f64() * 2e3,
                idle.pss_bytes as f64 / f64::from(1 << 20),
            ]);
        }
        let median = |column: usize| {
            let mut values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
            values.sort_by(f64::total_cmp);
            values[RUNS / 2]
        };
        println!(
            "{slots} slots: QEMU answers {:.0} ms, init {:.0} ms, processor {:.0} ms, \
             idle {:.0} ms/s, PSS {:.0} MiB",
            median(0),
            median(1),
            median(2),
            median(3),
            median(4),
        );
    }
}
