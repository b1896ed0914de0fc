//! What a machine can reach.

use std::{
    fs::{self, File},
    path::Path,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::guest::{NOBODY, Stage};

pub(crate) async fn the_jail_is_tight(stage: &Stage) {
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
        "usr", "lib", "lib64", "etc", "dev", "kernel", "initrd", "tmp", "opt", "var",
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

pub(crate) async fn a_given_network_namespace_is_entered(stage: &Stage) {
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
