//! What a container shares with others and what it does not.

use casemate_protocol::agent::{ContainerSpec, IdMapping, Mount, namespace::Kind};

use crate::guest::{Guest, bind, of, own, shell};

const LINKS: &str =
    "for n in pid ipc uts net cgroup mnt user time; do readlink /proc/self/ns/$n; done";

async fn links(guest: &Guest, id: &str) -> Vec<String> {
    let (_, text, stderr) = guest.exec(id, shell(LINKS)).await;
    assert_eq!(stderr, "");
    text.lines().map(str::to_owned).collect()
}

async fn start(guest: &Guest, id: &str, mut spec: ContainerSpec) {
    spec.cgroup.mut_or_insert_default().path = format!("pod/{id}");
    guest.create(id, spec).await.unwrap();
    guest.start_process(id, "").await.unwrap();
}

#[tokio::test]
async fn own_namespaces_are_own_and_the_rest_is_shared() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let sleep = || guest.spec("sleep 1000");
    start(&guest, "one", sleep()).await;
    start(&guest, "two", sleep()).await;
    let (one, two) = (links(&guest, "one").await, links(&guest, "two").await);
    for (n, (one, two)) in one.iter().zip(&two).enumerate() {
        let shared =
            one.starts_with("net:") || one.starts_with("user:") || one.starts_with("time:");
        assert_eq!(one == two, shared, "{n}: {one} {two}");
    }
    let (_, text, _) = guest
        .exec(
            "one",
            shell("hostname; echo $$ > /dev/null; cat /proc/1/comm; grep ^0:: /proc/self/cgroup"),
        )
        .await;
    assert_eq!(text, "box\nsleep\n0::/\n");
}

#[tokio::test]
async fn members_of_a_pod_join_the_first_one() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    start(&guest, "one", guest.spec("sleep 1000")).await;
    let mut spec = guest.spec("sleep 1000");
    spec.hostname.clear();
    spec.namespaces = vec![
        own(Kind::MOUNT),
        own(Kind::CGROUP),
        own(Kind::NETWORK),
        own(Kind::TIME),
        of(Kind::PID, "one"),
        of(Kind::IPC, "one"),
        of(Kind::UTS, "one"),
    ];
    start(&guest, "two", spec).await;
    let (one, two) = (links(&guest, "one").await, links(&guest, "two").await);
    for (one, two) in one.iter().zip(&two) {
        let joined = ["pid:", "ipc:", "uts:", "user:"]
            .iter()
            .any(|kind| one.starts_with(kind));
        assert_eq!(one == two, joined, "{one} {two}");
    }
    let (_, text, _) = guest
        .exec(
            "two",
            shell("hostname; ps -o comm | grep -c sleep; ls /sys/class/net"),
        )
        .await;
    assert_eq!(text, "box\n2\nlo\n");
    // The agent itself is where it was: what it makes next is not in there.
    start(&guest, "three", guest.spec("sleep 1000")).await;
    assert_ne!(links(&guest, "three").await[0], one[0]);
}

fn mapped(spec: &mut ContainerSpec) {
    let map = IdMapping {
        container_id: 0,
        host_id: 100_000,
        size: 65536,
        ..Default::default()
    };
    spec.uid_mappings = vec![map.clone()];
    spec.gid_mappings = vec![map];
}

#[tokio::test]
async fn a_user_namespace_maps_ids_and_can_be_joined() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let own_by = |path: &std::path::Path| {
        for entry in walk(path) {
            std::os::unix::fs::lchown(entry, Some(100_000), Some(100_000)).unwrap();
        }
    };
    own_by(&guest.rootfs());
    let volume = tempfile::tempdir().unwrap();
    own_by(volume.path());
    let script = "id -u; cat /proc/self/uid_map | tr -s ' '; touch /vol/made; ls -ln /dev/null | cut -c1-10; echo x > /dev/null; ls /sys > /dev/null; exec sleep 1000";
    let mut spec = guest.spec(script);
    spec.namespaces.push(own(Kind::USER));
    spec.mounts.push(bind(volume.path(), "/vol", 0));
    mapped(&mut spec);
    start(&guest, "one", spec).await;
    let stdout = guest
        .stream("one", "", casemate_protocol::stream::Stream::STDOUT)
        .await
        .unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stdout));
    for expected in ["0", " 0 100000 65536", "crw-rw-rw-"] {
        let line = crate::guest::within(lines.next_line())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(line, expected);
    }
    let owner =
        std::os::unix::fs::MetadataExt::uid(&volume.path().join("made").metadata().unwrap());
    assert_eq!(owner, 100_000);

    let mut second = guest.spec("sleep 1000");
    second.namespaces = vec![
        of(Kind::USER, "one"),
        of(Kind::IPC, "one"),
        own(Kind::PID),
        own(Kind::MOUNT),
        own(Kind::UTS),
        own(Kind::CGROUP),
    ];
    start(&guest, "two", second).await;
    let (one, two) = (links(&guest, "one").await, links(&guest, "two").await);
    for (one, two) in one.iter().zip(&two) {
        let joined = ["user:", "ipc:", "net:", "time:"]
            .iter()
            .any(|kind| one.starts_with(kind));
        assert_eq!(one == two, joined, "{one} {two}");
    }
    let (status, text, _) = guest
        .exec(
            "two",
            shell("id -u; tr -s ' ' < /proc/self/uid_map; exit 3"),
        )
        .await;
    assert_eq!((status, text.as_str()), (3, "0\n 0 100000 65536\n"));
    guest.remove("two").await.unwrap();
}

fn walk(path: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![path.to_owned()];
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            found.extend(walk(&entry.unwrap().path()));
        }
    }
    found
}

#[tokio::test]
async fn without_a_cgroup_namespace_the_own_cgroup_is_shown() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = guest.spec("grep -cx 1 /sys/fs/cgroup/cgroup.procs; grep -c pod /proc/self/cgroup; ls /sys/fs/cgroup | grep -c pod");
    spec.namespaces
        .retain(|namespace| namespace.kind != Kind::CGROUP.into());
    let (_, text, _) = guest.run(spec).await;
    assert_eq!(text, "1\n1\n0\n");
}

#[tokio::test]
async fn names_and_parameters_belong_to_the_container() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = guest.spec("hostname; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max");
    spec.domainname = "example".into();
    spec.sysctls.insert("kernel.msgmax".into(), "4321".into());
    spec.sysctls.insert("fs.mqueue.msg_max".into(), "77".into());
    let (_, text, _) = guest.run(spec).await;
    assert_eq!(text, "box\nexample\n4321\n77\n");
}

#[tokio::test]
async fn memory_with_a_name_is_shared_as_long_as_it_is_used() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let named = |name: &str| {
        let mut spec = guest.spec("sleep 1000");
        spec.mounts.push(Mount {
            destination: "/dev/shm".into(),
            fstype: "tmpfs".into(),
            source: "shm".into(),
            data: "mode=1777,size=65536".into(),
            shared: name.into(),
            ..Mount::default()
        });
        spec
    };
    for (id, name) in [("one", "pod"), ("two", "pod"), ("three", "other")] {
        start(&guest, id, named(name)).await;
    }
    guest.exec("one", shell("touch /dev/shm/mark")).await;
    let seen = async |id: &str| guest.exec(id, shell("ls /dev/shm")).await.1;
    assert_eq!(seen("two").await, "mark\n");
    assert_eq!(seen("three").await, "");
    guest.remove("one").await.unwrap();
    assert_eq!(seen("two").await, "mark\n");
    guest.remove("two").await.unwrap();
    start(&guest, "two", named("pod")).await;
    assert_eq!(seen("two").await, "");
}
