//! What is refused, and in which words.

use serde_json::{Value, json};

use super::golden::{golden, split_json};

/// The configuration that `runc spec` writes.
fn configuration() -> Value {
    let json = std::fs::read(golden("runc-spec.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

/// What is said about the configuration with the value at `place` replaced,
/// or added at the end of a list (`/mounts/-`), or taken away (null).
fn refusal(place: &str, value: &Value) -> String {
    match split_json(with(place, value).to_string().as_bytes()) {
        Ok(_) => format!("{place} = {value} was accepted"),
        Err(error) => error.to_string(),
    }
}

fn with(place: &str, value: &Value) -> Value {
    let mut configuration = configuration();
    let (parent, key) = place.rsplit_once('/').unwrap();
    match configuration.pointer_mut(parent).unwrap() {
        Value::Object(map) if value.is_null() => {
            map.remove(key);
        }
        Value::Object(map) => {
            map.insert(key.to_owned(), value.clone());
        }
        Value::Array(list) if key == "-" => list.push(value.clone()),
        Value::Array(list) if value.is_null() => {
            list.remove(key.parse().unwrap());
        }
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
        _ => panic!("{place}: no such place"),
    }
    configuration
}

fn check(cases: &[(&str, Value, &str)]) {
    for (place, value, expected) in cases {
        assert_eq!(refusal(place, value), *expected, "{place} = {value}");
    }
}

#[test]
fn what_is_missing() {
    check(&[
        ("/process", json!(null), "process: missing"),
        ("/process/args", json!(null), "process.args: missing"),
        ("/process/args", json!([]), "process.args: missing"),
        ("/root", json!(null), "root: missing"),
        ("/root/path", json!(""), "root.path: missing"),
        ("/linux", json!(null), "linux: missing"),
        (
            "/root/path",
            json!("missing"),
            "root.path: /bundle/missing: entity not found",
        ),
        (
            "/root/path",
            json!("file"),
            "root.path: /bundle/file: not a directory",
        ),
    ]);
}

#[test]
fn what_is_no_configuration() {
    for (json, expected) in [
        (
            "",
            "not an OCI configuration: EOF while parsing a value at line 1 column 0",
        ),
        (
            " []",
            "not an OCI configuration: it is a list, not an object",
        ),
        (
            "{\"process\":\n7}",
            "not an OCI configuration: invalid type: integer `7`, \
             expected struct Process at line 2 column 1",
        ),
    ] {
        assert_eq!(
            split_json(json.as_bytes()).unwrap_err().to_string(),
            expected
        );
    }
    let unknown_namespace = refusal("/linux/namespaces/-", &json!({"type": "moon"}));
    assert!(
        unknown_namespace.starts_with("not an OCI configuration: unknown variant `moon`"),
        "{unknown_namespace}"
    );
    let unknown_capability = refusal("/process/capabilities/bounding", &json!(["CAP_MOON"]));
    assert!(
        unknown_capability.starts_with("not an OCI configuration: no variant for CAP_MOON"),
        "{unknown_capability}"
    );
}

#[test]
fn the_process() {
    check(&[
        (
            "/process/cwd",
            json!("tmp"),
            r#"process.cwd: "tmp" is not absolute"#,
        ),
        (
            "/process/args",
            json!([""]),
            r#"process.args[0]: "" is not a program"#,
        ),
        (
            "/process/args",
            json!(["a\0b"]),
            r#"process.args: "a\0b" has a zero byte"#,
        ),
        (
            "/process/env",
            json!(["HOME"]),
            r#"process.env: "HOME" is not NAME=value"#,
        ),
        (
            "/process/env",
            json!(["=x"]),
            r#"process.env: "=x" is not NAME=value"#,
        ),
        (
            "/process/oomScoreAdj",
            json!(1001),
            r#"process.oomScoreAdj: "1001" is not within -1000 and 1000"#,
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]),
            r#"process.rlimits: "RLIMIT_CORE" has a soft limit above its hard limit"#,
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU"}, {"type": "RLIMIT_CPU"}]),
            r#"process.rlimits: "RLIMIT_CPU" is listed twice"#,
        ),
        (
            "/process/consoleSize",
            json!({"height": 25, "width": 65536}),
            r#"process.consoleSize: "65536x25" is too large for a terminal"#,
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_OTHER", "priority": 3}),
            r#"process.scheduler: "3" is a priority, which only SCHED_FIFO and SCHED_RR have"#,
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO", "runtime": 3}),
            r#"process.scheduler: "3" is a time, which only SCHED_DEADLINE has"#,
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            r#"process.ioPriority: "8" is not a priority from 0 to 7"#,
        ),
    ]);
}

#[test]
fn namespaces_of_the_host() {
    let kinds = ["pid", "network", "ipc", "uts", "mount"];
    for (n, kind) in kinds.iter().enumerate() {
        let expected = format!(
            "linux.namespaces: the container is to share the host's {kind} namespace, \
             but a virtual machine has its own"
        );
        assert_eq!(
            refusal(&format!("/linux/namespaces/{n}"), &json!(null)),
            expected
        );
    }
    check(&[
        (
            "/linux/namespaces/1",
            json!({"type": "network", "path": "/proc/1/ns/net"}),
            "linux.namespaces: the container is to share the host's network namespace, \
             but a virtual machine has its own",
        ),
        (
            "/linux/namespaces/1",
            json!({"type": "network", "path": "/run/netns/missing"}),
            "linux.namespaces: /run/netns/missing: entity not found",
        ),
        (
            "/linux/namespaces/1",
            json!({"type": "network", "path": "netns"}),
            r#"linux.namespaces: "netns" is not absolute"#,
        ),
        (
            "/linux/namespaces/0",
            json!({"type": "pid", "path": "/proc/7/ns/pid"}),
            "linux.namespaces: /proc/7/ns/pid: \
             not a namespace of a running container of Casemate",
        ),
        (
            "/linux/namespaces/4",
            json!({"type": "mount", "path": "/proc/4242/ns/mnt"}),
            "linux.namespaces: /proc/4242/ns/mnt: \
             a container in a virtual machine has its own mounts",
        ),
        (
            "/linux/namespaces/-",
            json!({"type": "pid"}),
            r#"linux.namespaces: "pid" is listed twice"#,
        ),
        (
            "/linux/namespaces/-",
            json!({"type": "user"}),
            "linux.uidMappings: missing",
        ),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1, "size": 1}]),
            "linux.uidMappings: mappings without a user namespace",
        ),
    ]);
}

#[test]
fn mounts() {
    let bind = |source: &str| json!({"destination": "/d", "source": source, "options": ["bind"]});
    let device = "is a host device, which a virtual machine does not have";
    let into = "which does not reach into a virtual machine";
    check(&[
        (
            "/mounts/-",
            bind("/srv/missing"),
            "mounts[/d]: /srv/missing: entity not found",
        ),
        ("/mounts/-", bind(""), "mounts[/d].source: missing"),
        (
            "/mounts/-",
            bind("/dev/sda"),
            &format!("mounts[/d]: /dev/sda {device}"),
        ),
        (
            "/mounts/-",
            bind("/dev/ttyS0"),
            &format!("mounts[/d]: /dev/ttyS0 {device}"),
        ),
        (
            "/mounts/-",
            bind("/srv/fifo"),
            &format!("mounts[/d]: /srv/fifo is a named pipe, {into}"),
        ),
        (
            "/mounts/-",
            bind("/run/docker.sock"),
            &format!("mounts[/d]: /run/docker.sock is a socket, {into}"),
        ),
        (
            "/mounts/-",
            bind("/proc"),
            "mounts[/d]: /proc is part of the host's proc file system, \
             which cannot be shared with a virtual machine",
        ),
        (
            "/mounts/-",
            json!({"destination": "/d", "type": "overlay", "options": ["lowerdir=/a"]}),
            "mounts[/d]: a virtual machine cannot mount a \"overlay\" file system of the host",
        ),
        (
            "/mounts/-",
            json!({"destination": "/d"}),
            "mounts[/d].type: missing",
        ),
        (
            "/mounts/-",
            json!({"destination": "/..", "type": "tmpfs"}),
            r#"mounts: "/.." is no destination of a mount"#,
        ),
        (
            "/mounts/-",
            json!({"destination": "/d", "type": "tmpfs", "options": ["remount"]}),
            "mounts[/d]: remount: every mount is made anew",
        ),
        (
            "/mounts/-",
            json!({"destination": "/d", "source": "/srv", "options": ["bind", "idmap"]}),
            "mounts[/d]: ID-mapped mounts do not exist on a virtio-fs share",
        ),
        (
            "/mounts/-",
            json!({"destination": "/d", "source": "/srv", "options": ["bind"],
                   "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
            "mounts[/d]: ID-mapped mounts do not exist on a virtio-fs share",
        ),
        (
            "/mounts/-",
            json!({"destination": "/d", "type": "proc", "options": ["tmpcopyup"]}),
            r#"mounts[/d]: "tmpcopyup" is for tmpfs only"#,
        ),
        (
            "/mounts/-",
            json!({"destination": "/d", "type": "tmpfs", "options": ["size=1\0"]}),
            r#"mounts[/d]: "\\0" is in a part of it"#,
        ),
    ]);
}

#[test]
fn devices() {
    check(&[
        (
            "/linux/devices",
            json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
            "linux.devices: \"/dev/sda\" (b 8:0) is a host device, \
             which a virtual machine does not have",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]),
            "linux.devices: \"/dev/kvm\" (c 10:232) is a host device, \
             which a virtual machine does not have",
        ),
        (
            "/linux/devices",
            json!([{"path": "null", "type": "c", "major": 1, "minor": 3}]),
            r#"linux.devices: "null" is not an absolute path"#,
        ),
        (
            "/linux/resources/devices",
            json!([{"allow": true, "access": "x"}]),
            r#"linux.resources.devices: "x" is not an access of r, w and m"#,
        ),
        (
            "/linux/resources/devices",
            json!([{"allow": true, "type": "c", "major": -2, "access": "r"}]),
            r#"linux.resources.devices: "-2" is no device number"#,
        ),
    ]);
}

#[test]
fn seccomp() {
    let profile = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let rule = |action: &str| json!({"names": ["read"], "action": action});
    let listener =
        "linux.seccomp: a listener on the host cannot decide for the kernel of a virtual machine";
    check(&[
        ("/linux/seccomp", profile(rule("SCMP_ACT_NOTIFY")), listener),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}),
            listener,
        ),
        (
            "/linux/seccomp",
            profile(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096})),
            r#"linux.seccomp: "4096" is no error number"#,
        ),
        (
            "/linux/seccomp",
            profile(json!({"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1})),
            r#"linux.seccomp: "1" is an errnoRet for an action without one"#,
        ),
        (
            "/linux/seccomp",
            profile(json!({"names": ["read"], "action": "SCMP_ACT_KILL",
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            r#"linux.seccomp: "6" is no index of an argument"#,
        ),
        (
            "/linux/seccomp",
            profile(json!({"names": [""], "action": "SCMP_ACT_KILL"})),
            r#"linux.seccomp: "" is no name of a system call"#,
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW",
                "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
            "linux.seccomp: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is for listeners only",
        ),
    ]);
}

#[test]
fn what_a_virtual_machine_does_not_have() {
    check(&[
        (
            "/linux/intelRdt",
            json!({"closID": "x"}),
            "linux.intelRdt: the host's cache allocation does not reach into a virtual machine",
        ),
        (
            "/linux/netDevices",
            json!({"eth1": {}}),
            "linux.netDevices: network devices of the host cannot be moved into a virtual machine",
        ),
        (
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1}}),
            "linux.timeOffsets: clocks of a container cannot be offset yet",
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX32"}),
            "linux.personality: only the domain LINUX without flags is known",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_LOCAL"}),
            "linux.memoryPolicy: the host's memory nodes are not those of a virtual machine",
        ),
        (
            "/vm",
            json!({"kernel": {"path": "/boot/vmlinuz"}}),
            "vm: the virtual machine is chosen by Casemate's own configuration",
        ),
    ]);
}

#[test]
fn the_rest() {
    check(&[
        (
            "/linux/rootfsPropagation",
            json!("sideways"),
            r#"linux.rootfsPropagation: "sideways" is no propagation"#,
        ),
        (
            "/linux/maskedPaths",
            json!(["proc/kcore"]),
            r#"linux.maskedPaths: "proc/kcore" is not absolute"#,
        ),
        (
            "/linux/sysctl",
            json!({"kernel.panic": "1"}),
            "linux.sysctl: \"kernel.panic\" is not in a separate kernel namespace",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "cleanup"}]}),
            r#"hooks.poststop: "cleanup" is not absolute"#,
        ),
        (
            "/hooks",
            json!({"prestart": [{"path": "/bin/true", "timeout": 0}]}),
            r#"hooks.prestart: "0" is no timeout above 0 seconds"#,
        ),
        (
            "/hooks",
            json!({"createContainer": [{"path": "/bin/true"}]}),
            "hooks.createContainer: \
             its programs are on the host, its namespaces in a virtual machine; \
             use createRuntime (host) or startContainer (guest)",
        ),
        (
            "/hooks",
            json!({"startContainer": [{"path": "true"}]}),
            r#"hooks.startContainer: "true" is not absolute"#,
        ),
    ]);
}

/// Accepted, but said.
#[test]
fn warnings() {
    let cases = [
        (
            "/process/apparmorProfile",
            json!("docker-default"),
            "AppArmor",
        ),
        ("/process/selinuxLabel", json!("system_u:x"), "SELinux"),
        ("/linux/mountLabel", json!("system_u:x"), "SELinux"),
        (
            "/process/execCPUAffinity",
            json!({"initial": "0"}),
            "processors",
        ),
        (
            "/mounts/-",
            json!({"destination": "/d", "source": "/srv", "options": ["bind", "Z"]}),
            "\"Z\" has no meaning for a bind mount",
        ),
        (
            "/mounts/-",
            json!({"destination": "/d", "source": "/srv", "options": ["rbind", "rshared"]}),
            "mounts that the container makes stay in the virtual machine",
        ),
    ];
    for (place, value, expected) in cases {
        let split = split_json(with(place, &value).to_string().as_bytes()).unwrap();
        let found = split
            .host
            .warnings
            .iter()
            .any(|line| line.contains(expected));
        assert!(found, "{place}: {:?}", split.host.warnings);
    }
}

#[test]
fn a_pod_member_joins_the_namespaces_of_the_first_container() {
    let namespaces = json!([
        {"type": "pid"}, {"type": "mount"},
        {"type": "network", "path": "/proc/4242/ns/net"},
        {"type": "ipc", "path": "/proc/4242/ns/ipc"},
        {"type": "uts", "path": "/proc/4242/ns/uts"},
    ]);
    let configuration = with("/linux/namespaces", &namespaces);
    let split = split_json(configuration.to_string().as_bytes()).unwrap();
    let joined: Vec<_> = split
        .host
        .joined
        .iter()
        .map(|namespace| &*namespace.kind)
        .collect();
    assert_eq!(joined, ["ipc", "uts"]);
    let of = |n: usize| split.guest.namespaces[n].of_container.as_str();
    assert_eq!((of(0), of(2), of(3)), ("", "infra", "infra"));
}
