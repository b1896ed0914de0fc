//! Devices that come and go.

use std::{fs::File, path::Path, time::Instant};

use casemate_hypervisor::{BlockDevice, Device, Error, MacAddress, NetworkDevice};

use crate::{guest::Stage, tap};

pub(crate) async fn disks_come_and_go(stage: &Stage) {
    let mut spec = stage.spec("watch");
    spec.hotplug_slots = 2;
    let vm = stage.boot(spec).await;
    stage.said("SEES []").await;

    let first = vm.plug(disk(stage, "first", 2048, false)).await.unwrap();
    stage.said("SEES [disk:first:4096:0]").await;
    // Two that write to one image would ruin it.
    let again = vm.plug(disk(stage, "first", 2048, false)).await;
    let again = again.unwrap_err();
    assert!(matches!(again, Error::Refused { .. }), "{again}");
    println!("  {again}");
    let second = vm.plug(disk(stage, "second", 1024, true)).await.unwrap();
    stage
        .said("SEES [disk:first:4096:0 disk:second:2048:1]")
        .await;
    let full = vm.plug(disk(stage, "third", 1024, true)).await.unwrap_err();
    assert!(matches!(full, Error::NoFreeSlot { slots: 2 }), "{full}");

    let start = Instant::now();
    vm.unplug(&first).await.unwrap();
    println!("  unplugged in {:.2?}", start.elapsed());
    stage.said("SEES [disk:second:2048:1]").await;
    let gone = vm.unplug(&first).await.unwrap_err();
    assert!(matches!(gone, Error::NoDevice { .. }), "{gone}");

    let start = Instant::now();
    let third = vm.plug(disk(stage, "third", 512, false)).await.unwrap();
    stage.said("disk:third:1024:0").await;
    println!("  plugged and seen in {:.2?}", start.elapsed());
    vm.unplug(&second).await.unwrap();
    vm.unplug(&third).await.unwrap();
    let folder = vm.plug(Device::Block(BlockDevice {
        image: File::open("/").unwrap(),
        read_only: true,
        serial: "folder".to_owned(),
    }));
    assert!(matches!(folder.await.unwrap_err(), Error::Device { .. }));
}

fn disk(stage: &Stage, name: &str, kib: u64, read_only: bool) -> Device {
    let path = stage.path(name);
    File::create(&path).unwrap().set_len(kib * 1024).unwrap();
    let image = File::options().read(true).write(!read_only).open(path);
    Device::Block(BlockDevice {
        image: image.unwrap(),
        read_only,
        serial: name.to_owned(),
    })
}

pub(crate) async fn network_cards_come_and_go(stage: &Stage) {
    if !Path::new("/dev/net/tun").exists() {
        println!("  skipped: no /dev/net/tun");
        return;
    }
    let name = format!("test{}", std::process::id());
    let mut spec = stage.spec("watch");
    spec.hotplug_slots = 1;
    let vm = stage.boot(spec).await;
    stage.said("SEES []").await;
    for last in 1..=2 {
        let card = Device::Network(NetworkDevice {
            tap_queues: vec![tap::open(&name)],
            mac: MacAddress([2, 0, 0, 0, 0, last]),
        });
        let start = Instant::now();
        let id = vm.plug(card).await.unwrap();
        stage
            .said(&format!("SEES [card:02:00:00:00:00:0{last}]"))
            .await;
        println!("  plugged and seen in {:.2?}", start.elapsed());
        vm.unplug(&id).await.unwrap();
        // QEMU has given the tap back: it is gone with its last descriptor.
        assert!(!Path::new("/sys/class/net").join(&name).exists());
    }
    let no_tap = Device::Network(NetworkDevice {
        tap_queues: vec![File::open("/dev/null").unwrap().into()],
        mac: MacAddress([2, 0, 0, 0, 0, 3]),
    });
    let refusal = vm.plug(no_tap).await.unwrap_err();
    assert!(
        matches!(
            refusal,
            Error::Refused {
                command: "netdev_add",
                ..
            }
        ),
        "{refusal}"
    );
    println!("  {refusal}");
}
