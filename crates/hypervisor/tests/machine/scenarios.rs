//! What is true of every machine.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use casemate_config::Accelerator;
use casemate_hypervisor::{
    BlockDevice, Cause, Device, Error, Hypervisor, MacAddress, NetworkDevice, ThreadRole, Tier,
    Vsock, qemu::Qemu,
};
use casemate_linux::{
    process::{pidfd_open, signal_pidfd},
    reactor::register_readable,
};
use nix::{
    libc::SIGKILL,
    sched::{CloneFlags, setns, unshare},
};

use crate::{
    AS_MONITOR, Scenario,
    guest::{CONSOLE_LIMIT, NOBODY, Stage},
    tap,
};

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        pub(crate) const ALL: &[(&str, Scenario)] =
            &[$((stringify!($name), |stage| Box::pin($name(stage)))),+];
    };
}

scenarios![
    a_guest_powers_off,
    a_guest_restarts_itself,
    a_panic_is_told,
    kill_and_drop_end_the_machine,
    a_foreign_kill_is_told,
    the_jail_is_tight,
    a_given_network_namespace_is_entered,
    a_paused_guest_stands_still,
    disks_come_and_go,
    network_cards_come_and_go,
    a_flooded_console_stays_small,
    several_processors_run,
    the_machine_dies_with_its_monitor,
    what_is_missing_is_named,
    a_failed_start_says_why,
    a_silent_start_has_an_end,
    a_weak_host_is_refused,
];

async fn a_guest_powers_off(stage: &Stage) {
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

async fn a_guest_restarts_itself(stage: &Stage) {
    let vm = stage.boot(stage.spec("restart")).await;
    let exit = vm.exited().await;
    assert_eq!(exit.cause, Cause::Reset, "{exit}\n{}", stage.console());
}

async fn a_panic_is_told(stage: &Stage) {
    let vm = stage.boot(stage.spec("panic")).await;
    let exit = vm.exited().await;
    let words = "the guest's kernel failed: Attempted to kill init! exitcode=0x00000000";
    assert_eq!(exit.to_string(), words, "{}", stage.console());
    assert!(!exit.is_orderly());
}

async fn kill_and_drop_end_the_machine(stage: &Stage) {
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

async fn a_foreign_kill_is_told(stage: &Stage) {
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

async fn the_jail_is_tight(stage: &Stage) {
    let vm = stage.boot(stage.spec("idle")).await;
    let process = Path::new("/proc").join(vm.pid().to_string());
    let status = fs::read_to_string(process.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().replace('\t', " ")
    };
    assert_eq!(
        field("Uid:"),
        [NOBODY.uid.to_string().as_str(); 4].join(" ")
    );
    assert_eq!(
        field("Gid:"),
        [NOBODY.gid.to_string().as_str(); 4].join(" ")
    );
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (field("NoNewPrivs:"), field("Seccomp:")),
        ("1".into(), "2".into())
    );
    for namespace in ["mnt", "pid", "ipc", "uts", "net", "cgroup"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).unwrap();
        assert_ne!(of(&process), of(Path::new("/proc/self")), "{namespace}");
    }
    let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        let (place, options) = (fields[4], fields[5]);
        assert!(options.contains("nosuid"), "{mount}");
        if !place.starts_with("/dev/") {
            assert!(
                options.starts_with("ro,") && options.contains("nodev"),
                "{mount}"
            );
        }
    }
    let root: Vec<_> = fs::read_dir(process.join("root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let known = [
        "usr", "lib", "lib64", "etc", "dev", "kernel", "initrd", "tmp", "opt",
    ];
    assert!(
        root.iter().all(|name| known.contains(&name.as_str())),
        "{root:?}"
    );
    only_own_descriptors(&process);
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    assert_eq!(core.unwrap().split_whitespace().nth(4), Some("0"));
}

/// Sockets, memory and the machinery of event loops, but no file of the host.
fn only_own_descriptors(process: &Path) {
    for entry in fs::read_dir(process.join("fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let target = target.to_str().unwrap();
        let kinds = ["socket:", "pipe:", "anon_inode:", "/memfd:memory"];
        let known = kinds.iter().any(|kind| target.starts_with(kind));
        let devices = ["/null", "/kvm"];
        let device = devices.iter().any(|name| target.ends_with(name));
        assert!(known || device, "{target}");
    }
}

async fn a_given_network_namespace_is_entered(stage: &Stage) {
    let own = File::open("/proc/self/ns/net").unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let netns = File::open("/proc/self/ns/net").unwrap();
    let expected = fs::read_link("/proc/self/ns/net").unwrap();
    setns(&own, CloneFlags::CLONE_NEWNET).unwrap();
    let mut spec = stage.spec("idle");
    spec.netns = Some(netns.into());
    let vm = stage.boot(spec).await;
    let seen = fs::read_link(format!("/proc/{}/ns/net", vm.pid())).unwrap();
    assert_eq!(seen, expected);
}

async fn a_paused_guest_stands_still(stage: &Stage) {
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

async fn disks_come_and_go(stage: &Stage) {
    let mut spec = stage.spec("watch");
    spec.hotplug_slots = 2;
    let vm = stage.boot(spec).await;
    stage.said("SEES []").await;

    let first = vm.plug(disk(stage, "first", 2048, false)).await.unwrap();
    stage.said("SEES [disk:first:4096:0]").await;
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

async fn network_cards_come_and_go(stage: &Stage) {
    let mut spec = stage.spec("watch");
    spec.hotplug_slots = 1;
    let vm = stage.boot(spec).await;
    stage.said("SEES []").await;
    for last in 1..=2 {
        let card = Device::Network(NetworkDevice {
            tap_queues: vec![tap::open("casemate-test")],
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
        assert!(!Path::new("/sys/class/net/casemate-test").exists());
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

async fn a_flooded_console_stays_small(stage: &Stage) {
    let _vm = stage.boot(stage.spec("flood")).await;
    stage.said("line 999 of many").await;
    let length = stage.console().len() as u64;
    assert!(
        (CONSOLE_LIMIT / 2..=CONSOLE_LIMIT).contains(&length),
        "{length}"
    );
}

async fn several_processors_run(stage: &Stage) {
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

async fn the_machine_dies_with_its_monitor(_stage: &Stage) {
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

async fn what_is_missing_is_named(stage: &Stage) {
    let refusal = async |spec| {
        stage
            .qemu()
            .boot(spec)
            .await
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    let mut spec = stage.spec("idle");
    spec.kernel = "/no/vmlinux".into();
    let words = "guest kernel /no/vmlinux: No such file or directory (os error 2)";
    assert_eq!(refusal(spec).await, words);
    let mut spec = stage.spec("idle");
    spec.initrd = "/no/initrd".into();
    assert!(
        refusal(spec)
            .await
            .starts_with("initial RAM file system /no/initrd: ")
    );
    let mut spec = stage.spec("idle");
    spec.vcpus = 300;
    let words = "virtual processors: 300 asked for, at most 255 possible";
    assert_eq!(refusal(spec).await, words);

    let open = |program: &str| {
        let mut settings = stage.settings.clone();
        settings.program = program.into();
        Qemu::open(&settings).unwrap_err().to_string()
    };
    let words = "QEMU /no/bin/qemu: No such file or directory (os error 2)";
    assert_eq!(open("/no/bin/qemu"), words);
    let words = "QEMU /bin/true: not a QEMU system emulator: it exited with code 0 \
                 and says \"true (GNU coreutils) ";
    assert!(
        open("/bin/true").starts_with(words),
        "{}",
        open("/bin/true")
    );
}

async fn a_failed_start_says_why(stage: &Stage) {
    let mut spec = stage.spec("idle");
    spec.kernel = stage.path("no-kernel");
    fs::write(&spec.kernel, b"\x7fELF\x02\x01\x01 and nothing else").unwrap();
    let error = stage.qemu().boot(spec).await.map(drop).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("the virtual machine monitor exited with code 1: "),
        "{text}"
    );
    assert!(text.contains("qemu") && text.lines().count() == 1, "{text}");
    println!("  {text}");
}

async fn a_silent_start_has_an_end(stage: &Stage) {
    let mut settings = stage.settings.clone();
    settings.start_limit = Duration::from_millis(1500);
    let qemu = Qemu::open(&settings).unwrap();
    // QEMU waits for the back end's half of the handshake.
    let (silent, socket) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut spec = stage.spec("idle");
    spec.vsock = Some(Vsock {
        socket: socket.into(),
    });
    let error = qemu.boot(spec).await.map(drop).unwrap_err().to_string();
    let words = "the virtual machine monitor did not answer start within 1.5s";
    assert_eq!(error, words);
    drop(silent);

    let mut spec = stage.spec("idle");
    spec.netns = Some(File::open("/dev/null").unwrap().into());
    let error = qemu.boot(spec).await.map(drop).unwrap_err().to_string();
    let words = "starting the virtual machine monitor: entering the network namespace: \
                 Invalid argument (os error 22)";
    assert_eq!(error, words);
}

async fn a_weak_host_is_refused(stage: &Stage) {
    let tier = stage.qemu().capabilities().tier;
    let mut settings = stage.settings.clone();
    settings.accelerator = Accelerator::Emulated;
    settings.min_tier = Tier::Nested;
    let error = Qemu::open(&settings).unwrap_err().to_string();
    let words = "the isolation tier of this host is emulated, but at least nested is demanded: ";
    assert!(error.starts_with(words), "{error}");
    if tier == Tier::Emulated {
        settings.accelerator = Accelerator::Kvm;
        settings.min_tier = Tier::Emulated;
        let error = Qemu::open(&settings).unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
        println!("  {error}");
    }
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
