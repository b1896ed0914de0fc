//! What a container sees of file systems.

use std::{fs, os::unix::fs::symlink};

use casemate_protocol::agent::{Device, Mount};

use crate::guest::{Guest, bind, mount, status};

async fn stdout(guest: &Guest, spec: casemate_protocol::agent::ContainerSpec) -> String {
    let (status, stdout, stderr) = guest.run(spec).await;
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    stdout
}

#[tokio::test]
async fn the_usual_file_systems_are_there() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "cut -d' ' -f 4- /proc/self/mountinfo | sed 's/,size.*//'";
    let text = stdout(&guest, guest.spec(script)).await;
    for line in [
        "/ /proc rw,nosuid,nodev,noexec,relatime - proc proc rw",
        "/ /dev rw,nosuid,relatime - tmpfs tmpfs rw",
        "/ /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5,mode=620,ptmxmode=666",
        "/ /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro",
        "/ /dev/mqueue rw,nosuid,nodev,noexec,relatime - mqueue mqueue rw",
        "/ /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup",
        "/ /proc/acpi ro,relatime - tmpfs tmpfs ro",
        "/sys /proc/sys ro,nosuid,nodev,noexec,relatime - proc proc rw",
    ] {
        assert!(
            text.lines().any(|other| other.starts_with(line)),
            "{line}\n{text}"
        );
    }
    // Nothing of the outside is left.
    assert!(!text.contains("/run"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains(" / ")).count(), 1);
}

#[tokio::test]
async fn devices_and_links_are_made() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "cd /dev; for n in null zero full random urandom tty; do stat -c '%n %F %t:%T %a %u' $n; done
        for n in fd stdin stdout stderr ptmx; do echo $n $(readlink $n); done
        stat -c '%a %u %g' own/deep; echo x > null; head -c 2 zero | wc -c";
    let mut spec = guest.spec(script);
    spec.devices.push(Device {
        path: "/dev/own/deep".into(),
        major: 1,
        minor: 3,
        mode: 0o640,
        uid: 7,
        gid: 8,
        ..Default::default()
    });
    let text = stdout(&guest, spec).await;
    assert_eq!(
        text,
        "null character special file 1:3 666 0\nzero character special file 1:5 666 0\n\
         full character special file 1:7 666 0\nrandom character special file 1:8 666 0\n\
         urandom character special file 1:9 666 0\ntty character special file 5:0 666 0\n\
         fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\n\
         ptmx pts/ptmx\n640 7 8\n2\n"
    );
}

#[tokio::test]
async fn device_rules_are_in_force() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "mknod /dev/kmem c 1 11 && (cat /dev/kmem; echo $?) 2>/dev/null; head -c1 /dev/full || echo full";
    let (_, text, stderr) = guest.run(guest.spec(script)).await;
    // kmsg may be made but not read; full is not in the rules at all.
    assert_eq!(text, "1\nfull\n", "{stderr}");
    assert!(stderr.contains("Operation not permitted"), "{stderr}");
}

#[tokio::test]
async fn volumes_are_bound_where_they_should_be() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let volumes = tempfile::tempdir().unwrap();
    let (file, directory) = (volumes.path().join("file"), volumes.path().join("dir"));
    fs::write(&file, "content").unwrap();
    fs::create_dir(&directory).unwrap();
    // Images have this point to what only a running system has.
    symlink(
        "../run/resolve/stub.conf",
        guest.rootfs().join("etc/resolv.conf"),
    )
    .unwrap();
    symlink("/../../../..", guest.rootfs().join("up")).unwrap();
    let script = "cat /etc/resolv.conf /up/deep/file; echo written > /vol/x; (echo x > /ro/x) 2>&1; grep -c ' /ro ro,' /proc/self/mountinfo";
    let mut spec = guest.spec(script);
    spec.mounts.extend([
        bind(&file, "/etc/resolv.conf", 0),
        bind(&file, "/up/deep/file", 0),
        bind(&directory, "/vol", 0),
        bind(&directory, "/ro", libc::MS_RDONLY | libc::MS_NOSUID),
    ]);
    let text = stdout(&guest, spec).await;
    assert_eq!(
        text,
        "contentcontentsh: can't create /ro/x: Read-only file system\n1\n"
    );
    assert_eq!(
        fs::read_to_string(directory.join("x")).unwrap(),
        "written\n"
    );
    assert!(guest.rootfs().join("run/resolve/stub.conf").is_file());
    assert!(guest.rootfs().join("deep/file").is_file());
}

#[tokio::test]
async fn a_read_only_root_and_read_only_tmpfs_are_complete() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = guest.spec("touch /x /dev/x /data/x /scratch/x; ls /scratch /data");
    spec.readonly_rootfs = true;
    spec.process.mut_or_insert_default().cwd = "/made/before".into();
    spec.mounts[1].flags |= libc::MS_RDONLY;
    spec.mounts.push(mount("tmpfs", "/scratch", 0, ""));
    spec.mounts
        .push(mount("tmpfs", "/data", libc::MS_RDONLY, ""));
    spec.mounts.push(mount("tmpfs", "/data/below", 0, ""));
    let (status, text, stderr) = guest.run(spec).await;
    assert_eq!(
        (status, text.as_str()),
        (0, "/data:\nbelow\n\n/scratch:\nx\n")
    );
    assert_eq!(
        stderr.matches("Read-only file system").count(),
        3,
        "{stderr}"
    );
}

#[tokio::test]
async fn a_tmpfs_can_start_with_what_it_covers() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let covered = guest.rootfs().join("covered");
    fs::create_dir_all(covered.join("sub")).unwrap();
    fs::write(covered.join("sub/file"), "kept").unwrap();
    let mut spec = guest.spec("cat /covered/sub/file; echo new > /covered/sub/file");
    spec.mounts.push(Mount {
        copy_up: true,
        ..mount("tmpfs", "/covered", 0, "")
    });
    assert_eq!(stdout(&guest, spec).await, "kept");
    assert_eq!(
        fs::read_to_string(covered.join("sub/file")).unwrap(),
        "kept"
    );
}

#[tokio::test]
async fn masked_paths_are_empty() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "wc -c < /proc/interrupts; ls /proc/acpi /sys/firmware; (echo 1 > /proc/sys/kernel/printk) 2>&1 || true";
    let text = stdout(&guest, guest.spec(script)).await;
    let refused = "sh: can't create /proc/sys/kernel/printk: Read-only file system\n";
    assert_eq!(text, format!("0\n/proc/acpi:\n\n/sys/firmware:\n{refused}"));
}

#[tokio::test]
async fn proc_is_not_mounted_through_a_link() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    fs::remove_dir(guest.rootfs().join("proc")).unwrap();
    symlink("/tmp", guest.rootfs().join("proc")).unwrap();
    let error = guest.create("box", guest.spec("true")).await.unwrap_err();
    let text = "error mounting \"proc\" to rootfs at \"/proc\": not a directory";
    assert_eq!(status(error), (ttrpc::Code::INTERNAL, text.into()));
}

#[tokio::test]
async fn recursive_attributes_and_propagation_are_set() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let volume = tempfile::tempdir().unwrap();
    let script = "grep ' /vol ' /proc/self/mountinfo | cut -d' ' -f6,7; grep -c ' / .*shared' /proc/self/mountinfo";
    let mut spec = guest.spec(script);
    spec.rootfs_propagation = libc::MS_SHARED;
    spec.mounts.push(Mount {
        recursive_set: libc::MOUNT_ATTR_RDONLY,
        propagation: libc::MS_SHARED | libc::MS_REC,
        ..bind(volume.path(), "/vol", 0)
    });
    let text = stdout(&guest, spec).await;
    assert!(text.starts_with("ro,relatime shared:"), "{text}");
    assert!(text.ends_with("\n1\n"), "{text}");
}
