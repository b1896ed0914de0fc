//! The sandbox containers of pods.

use std::collections::HashMap;

use casemate_protocol::agent::{self, namespace::Kind};
use serde_json::{Value, json};

use super::fake_host::FakeHost;
use super::golden::{golden, split_json};
use crate::spec::{HostPath, NetworkNamespace, Pause, Split, pause, share_memory};

const WHY: &str = "a pod's sandbox container has no program";

/// The configuration that `runc spec` writes, as a sandbox container's.
fn configuration(change: impl FnOnce(&mut Value)) -> Result<Split, String> {
    let json = std::fs::read(golden("runc-spec.json")).unwrap();
    let mut spec: Value = serde_json::from_slice(&json).unwrap();
    spec["annotations"] = json!({"io.kubernetes.cri-o.ContainerType": "sandbox"});
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/pause"]);
    spec["process"]["capabilities"] = Value::Null;
    change(&mut spec);
    split_json(spec.to_string().as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn a_root_file_system_is_not_looked_for() {
    for root in [json!(null), json!({"path": "missing"})] {
        let split = configuration(|spec| spec["root"] = root).unwrap();
        assert_eq!(split.host.rootfs, None);
        assert!(split.guest.pause && split.guest.rootfs.is_empty());
    }
}

#[test]
fn what_needs_a_program_is_refused() {
    let refused = configuration(|spec| spec["process"]["terminal"] = json!(true));
    assert_eq!(refused.unwrap_err(), format!("process.terminal: {WHY}"));
    let hooks = json!({"startContainer": [{"path": "/bin/true"}]});
    let refused = configuration(|spec| spec["hooks"] = hooks);
    assert_eq!(refused.unwrap_err(), format!("hooks.startContainer: {WHY}"));
}

#[test]
fn a_program_that_would_do_something_is_a_warning() {
    let run = |args: &[&str]| configuration(|spec| spec["process"]["args"] = json!(args)).unwrap();
    let waits: [&[&str]; 2] = [&["/pause"], &["/usr/bin/catatonit", "-P"]];
    for args in waits {
        assert_eq!(run(args).host.warnings, Vec::<String>::new());
    }
    let expected =
        format!("process.args: [\"sh\", \"-c\", \"x\"] is not executed: {WHY} of its own");
    assert_eq!(run(&["sh", "-c", "x"]).host.warnings, [expected]);
}

#[test]
fn memory_to_share_is_the_only_mount_that_stays() {
    let mounts = json!([
        {"destination": "/dev/shm", "type": "bind", "source": "/sandboxes/s/shm", "options": ["rbind", "ro"]},
        {"destination": "/etc/resolv.conf", "type": "bind", "source": "/sandboxes/s/resolv.conf", "options": ["rbind"]},
        {"destination": "/proc", "type": "proc", "source": "proc"},
    ]);
    let split = configuration(|spec| spec["mounts"] = mounts).unwrap();
    let mounts = &split.guest.mounts;
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].shared, "/sandboxes/s/shm");
    assert_eq!(mounts[0].data, "mode=1777,size=65536000");
    assert!(split.host.shares.is_empty());
    // The name servers of the pod are known all the same.
    assert_eq!(
        split.host.resolver,
        HostPath::new("/sandboxes/s/resolv.conf")
    );
}

#[test]
fn it_can_be_made_without_a_configuration() {
    let sysctls = HashMap::from([("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
    let netns = HostPath::new("/run/netns/cni-1");
    let wish = Pause {
        container_id: "s",
        hostname: "tower",
        network: netns.clone(),
        sysctls: &sysctls,
        cgroups_path: Some("/kubepods/pod1/s".to_owned()),
        pod: serde_json::from_value(json!({"memory": {"limit": 1 << 30}})).unwrap(),
        annotations: [("a".to_owned(), "b".to_owned())].into(),
        process: agent::Process {
            uid: 7,
            ..agent::Process::default()
        },
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
    };
    let Split { host, guest } = pause(wish.clone(), &FakeHost).unwrap();
    assert_eq!(host.network, NetworkNamespace::Path(netns.unwrap()));
    assert_eq!(host.cgroups_path.as_deref(), Some("/kubepods/pod1/s"));
    assert_eq!(host.hostname.as_deref(), Some("tower"));
    assert_eq!(host.sizing(), wish.pod.as_ref());
    assert_eq!(host.resources, wish.pod);
    assert_eq!(
        (host.rootfs, host.command),
        (None, vec!["/pause".to_owned()])
    );
    assert!(guest.pause);
    assert_eq!(guest.hostname, "tower");
    assert_eq!(guest.sysctls, sysctls);
    assert_eq!(guest.namespaces.len(), 5);
    assert_eq!(
        (host.annotations["a"].as_str(), guest.process.uid),
        ("b", 7)
    );
    let memory = &guest.mounts[0];
    assert_eq!((&*memory.destination, &*memory.shared), ("/dev/shm", "pod"));
    assert_eq!(guest.cgroup.path, "containers/s");

    let range = agent::IdMapping {
        host_id: 100_000,
        size: 65_536,
        ..agent::IdMapping::default()
    };
    let mapped = Pause {
        uid_mappings: vec![range.clone()],
        gid_mappings: vec![range],
        ..wish.clone()
    };
    let guest = pause(mapped, &FakeHost).unwrap().guest;
    let last = guest.namespaces.last().unwrap();
    assert_eq!(last.kind, Kind::USER.into());
    assert_eq!(guest.uid_mappings[0].host_id, 100_000);

    let refusal = |wish| pause(wish, &FakeHost).unwrap_err().to_string();
    let hosts = Pause {
        network: HostPath::new("/proc/1/ns/net"),
        ..wish.clone()
    };
    assert!(refusal(hosts).contains("network"));
    let sysctls = HashMap::from([("kernel.panic".to_owned(), "1".to_owned())]);
    let foreign = Pause {
        sysctls: &sysctls,
        ..wish
    };
    assert!(refusal(foreign).starts_with("linux.sysctl: "));
}

/// Memory goes with the IPC namespace, unless the client brings its own.
#[test]
fn members_share_the_memory_that_was_made_without_a_configuration() {
    let ipc = |of: &str| agent::Namespace {
        kind: Kind::IPC.into(),
        of_container: of.to_owned(),
        ..agent::Namespace::default()
    };
    let mount = |shared: &str, fstype: &str| agent::Mount {
        destination: "/dev/shm".to_owned(),
        fstype: fstype.to_owned(),
        shared: shared.to_owned(),
        ..agent::Mount::default()
    };
    for (of, before, expected) in [
        ("s", mount("", "tmpfs"), "pod"),
        ("", mount("", "tmpfs"), ""),
        ("other", mount("", "tmpfs"), ""),
        ("s", mount("/volume", "tmpfs"), "/volume"),
        ("s", mount("", "bind"), ""),
    ] {
        let mut guest = agent::ContainerSpec {
            namespaces: vec![ipc(of)],
            mounts: vec![before],
            ..agent::ContainerSpec::default()
        };
        share_memory(&mut guest, "s");
        assert_eq!(guest.mounts[0].shared, expected);
    }
}
