//! A pod's sandbox container, which has no program: the agent plays it.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use casemate_protocol::{
    agent::{
        Cgroup, ContainerSpec, Hook, IdMapping, Mount, Process, Rlimit, SignalProcessRequest,
        namespace::Kind,
    },
    stream::Stream,
};
use ttrpc::Code;

use crate::guest::{Guest, limit, of, outputs, own, read_all, shell, status, within};

const OWN: [Kind; 5] = [Kind::PID, Kind::MOUNT, Kind::IPC, Kind::UTS, Kind::CGROUP];

fn pause() -> ContainerSpec {
    ContainerSpec {
        pause: true,
        process: Some(Process {
            uid: 65_535,
            gid: 65_534,
            oom_score_adj: Some(500),
            ..Default::default()
        })
        .into(),
        streams: Some(outputs()).into(),
        namespaces: OWN.map(own).to_vec(),
        hostname: "tower".into(),
        cgroup: Some(Cgroup {
            path: "pod/pause".into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

async fn start(guest: &Guest, id: &str, spec: ContainerSpec) {
    guest.create(id, spec).await.unwrap();
    guest.start_process(id, "").await.unwrap();
}

/// A container in the namespaces of the sandbox container.
async fn start_member(guest: &Guest, id: &str, mounts: &[Mount]) {
    let mut spec = guest.spec("exec sleep 1000");
    spec.hostname.clear();
    spec.namespaces = [Kind::PID, Kind::IPC, Kind::UTS]
        .map(|kind| of(kind, "pause"))
        .to_vec();
    spec.namespaces.extend([Kind::MOUNT, Kind::CGROUP].map(own));
    spec.mounts.extend_from_slice(mounts);
    spec.cgroup.mut_or_insert_default().path = format!("pod/{id}");
    start(guest, id, spec).await;
}

async fn signal(guest: &Guest, number: i32) {
    let request = SignalProcessRequest {
        container_id: "pause".into(),
        signal: number as u32,
        ..Default::default()
    };
    guest
        .agent
        .signal_process(limit(), &request)
        .await
        .map(drop)
        .unwrap();
}

/// The process as the host sees it.
fn process(guest: &Guest) -> PathBuf {
    let list = fs::read_to_string(guest.cgroup().join("pod/pause/cgroup.procs")).unwrap();
    PathBuf::from("/proc").join(list.trim())
}

#[tokio::test]
async fn it_holds_the_namespaces_and_reaps_for_the_members() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = pause();
    spec.domainname = "example".into();
    spec.sysctls.insert("kernel.msgmax".into(), "4321".into());
    // Another user's limits are for CAP_SYS_RESOURCE to set.
    let limit = Rlimit {
        resource: libc::RLIMIT_NOFILE,
        soft: 11,
        hard: 12,
        ..Default::default()
    };
    let of_root = spec.process.mut_or_insert_default();
    (of_root.uid, of_root.gid, of_root.rlimits) = (0, 0, vec![limit]);
    start(&guest, "pause", spec).await;
    let limits = fs::read_to_string(process(&guest).join("limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files: Vec<_> = files.unwrap().split_whitespace().collect();
    assert_eq!(files[3..5], ["11", "12"]);
    start_member(&guest, "one", &[]).await;
    start_member(&guest, "two", &[]).await;
    let look = "hostname; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax /proc/1/comm; \
                ls -A /proc/1/root/ 2> /dev/null; ls -A /proc/1/cwd/ 2> /dev/null; echo over";
    let (_, text, _) = guest.exec("two", shell(look)).await;
    assert_eq!(text, "tower\nexample\n4321\npause\nover\n");

    // Nobody waits for a process whose parent has gone but the first one.
    let orphan = "(sleep 0.05 & echo $!)";
    let (_, pid, _) = guest.exec("one", shell(orphan)).await;
    let parent = format!("awk '/PPid/ {{ print $2 }}' /proc/{}/status", pid.trim());
    let gone = async {
        loop {
            let (status, parent, _) = guest.exec("two", shell(&parent)).await;
            if status != 0 {
                return;
            }
            assert_eq!(parent, "1\n");
        }
    };
    within(gone).await;
}

#[tokio::test]
async fn it_has_nothing_that_could_be_used() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("pause", pause()).await.unwrap();
    let output = guest.stream("pause", "", Stream::STDOUT).await.unwrap();
    guest.start_process("pause", "").await.unwrap();
    assert_eq!(read_all(output).await, "", "its streams are closed");
    let process = process(&guest);
    let read = |file: &str| fs::read_to_string(process.join(file)).unwrap();
    assert_eq!(fs::read_dir(process.join("fd")).unwrap().count(), 0);
    let root = process.join("root/.");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    let made = fs::create_dir(root.join("x")).unwrap_err();
    assert_eq!(made.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(
        read("mountinfo").lines().count(),
        1,
        "{}",
        read("mountinfo")
    );
    assert_eq!(root.metadata().unwrap().permissions().mode() & 0o777, 0o555);

    let facts = read("status");
    let fact = |name: &str| {
        let line = facts.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(fact(set), "0000000000000000", "{set}");
    }
    assert_eq!(fact("NoNewPrivs:"), "1");
    assert_eq!(fact("Uid:"), "65535 65535 65535 65535");
    assert_eq!(fact("Gid:"), "65534 65534 65534 65534");
    assert_eq!(fact("Threads:"), "1");
    assert_eq!(read("oom_score_adj"), "500\n");
}

#[tokio::test]
async fn it_ends_as_a_pause_program_does() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    for (number, expected) in [
        (libc::SIGTERM, 0),
        (libc::SIGINT, 0),
        (libc::SIGKILL, 128 + libc::SIGKILL as u32),
    ] {
        start(&guest, "pause", pause()).await;
        start_member(&guest, "one", &[]).await;
        // The first of a PID namespace does not mind.
        signal(&guest, libc::SIGHUP).await;
        signal(&guest, number).await;
        assert_eq!(guest.wait("pause", "").await.exit_status, expected);
        // Its namespace ends with it.
        assert_eq!(guest.wait("one", "").await.exit_status, 137);
        guest.remove("one").await.unwrap();
        guest.remove("pause").await.unwrap();
        assert!(!guest.cgroup().join("pod/pause").exists());
    }
    guest.create("pause", pause()).await.unwrap();
    signal(&guest, libc::SIGTERM).await;
    assert_eq!(guest.wait("pause", "").await.exit_status, 143);
}

#[tokio::test]
async fn it_runs_no_program() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    start(&guest, "pause", pause()).await;
    let refused = guest.add("pause", "exec", shell("true"), outputs()).await;
    let expected = "unable to start container process: exec: \"sh\": executable file not found in \
                    $PATH: a pod's sandbox container has no programs";
    assert_eq!(
        status(refused.unwrap_err()),
        (Code::INVALID_ARGUMENT, expected.to_owned())
    );
    let with = |change: fn(&mut ContainerSpec)| {
        let mut spec = pause();
        change(&mut spec);
        spec
    };
    let specs = [
        with(|spec| spec.process.mut_or_insert_default().args = vec!["sh".into()]),
        with(|spec| spec.process.mut_or_insert_default().terminal = true),
        with(|spec| spec.rootfs = "/".into()),
        with(|spec| spec.start_hooks = vec![Hook::default()]),
        with(|spec| spec.mounts = vec![crate::guest::mount("proc", "/proc", 0, "")]),
    ];
    for (spec, what) in specs
        .into_iter()
        .zip(["args", "terminal", "rootfs", "hooks", "mounts"])
    {
        let expected = format!("{what}: a pod's sandbox container must have none");
        let refused = guest.create("other", spec).await.unwrap_err();
        assert_eq!(status(refused), (Code::INVALID_ARGUMENT, expected));
    }
}

#[tokio::test]
async fn memory_of_the_pod_stays_as_long_as_it() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let memory = Mount {
        destination: "/dev/shm".into(),
        fstype: "tmpfs".into(),
        source: "shm".into(),
        data: "mode=1777,size=65536".into(),
        shared: "pod".into(),
        ..Mount::default()
    };
    let read_only = Mount {
        flags: libc::MS_RDONLY,
        ..memory.clone()
    };
    let mut spec = pause();
    spec.mounts = vec![read_only];
    start(&guest, "pause", spec).await;
    let memory = [memory];
    start_member(&guest, "one", &memory).await;
    guest.exec("one", shell("echo kept > /dev/shm/mark")).await;
    guest.remove("one").await.unwrap();
    start_member(&guest, "two", &memory).await;
    let look = "cat /dev/shm/mark; df -k /dev/shm | awk 'NR == 2 { print $2 }'";
    assert_eq!(guest.exec("two", shell(look)).await.1, "kept\n64\n");
    guest.remove("two").await.unwrap();
    guest.remove("pause").await.unwrap();
    start(&guest, "pause", pause()).await;
    start_member(&guest, "three", &memory).await;
    assert_eq!(guest.exec("three", shell("ls /dev/shm")).await.1, "");
}

#[tokio::test]
async fn it_can_have_a_user_namespace() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let map = IdMapping {
        container_id: 0,
        host_id: 100_000,
        size: 65_536,
        ..Default::default()
    };
    let mut spec = pause();
    spec.namespaces.push(own(Kind::USER));
    spec.uid_mappings = vec![map.clone()];
    spec.gid_mappings = vec![map];
    start(&guest, "pause", spec).await;
    let process = process(&guest);
    let facts = fs::read_to_string(process.join("status")).unwrap();
    assert!(facts.contains("Uid:\t165535\t165535"), "{facts}");
    assert_eq!(fs::read_dir(process.join("root/.")).unwrap().count(), 0);
    signal(&guest, libc::SIGTERM).await;
    assert_eq!(guest.wait("pause", "").await.exit_status, 0);
}
