//! Machines that do not start.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    time::Duration,
};

use casemate_config::Accelerator;
use casemate_hypervisor::{Hypervisor, Tier, Vsock, qemu::Qemu};

use crate::guest::Stage;

pub(crate) async fn what_is_missing_is_named(stage: &Stage) {
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

pub(crate) async fn a_failed_start_says_why(stage: &Stage) {
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

pub(crate) async fn a_silent_start_has_an_end(stage: &Stage) {
    let mut settings = stage.settings.clone();
    settings.start_limit = Duration::from_millis(1500);
    let qemu = Qemu::open(&settings).unwrap();
    // QEMU waits for the back end's half of the handshake.
    let (silent, socket) = UnixStream::pair().unwrap();
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

pub(crate) async fn a_weak_host_is_refused(stage: &Stage) {
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
