//! The jail of the real process, seen from outside and through the file server.
//! Needs root.

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use casemate_devices::{Inodes, Settings};
use nix::mount::{MsFlags, mount};
use support::fuse::{ATTR_SUBMOUNT, Fuse, ROOT};
use support::process::Process;

/// Capabilities of file sharing: chown, dac_override, fowner, fsetid, setgid,
/// setuid, mknod, setfcap.
const FILE_SHARING: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;

#[test]
fn the_walls_stand() {
    let process = Process::start();
    let file_sharing = format!("{FILE_SHARING:016x}");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(process.status(set), file_sharing, "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(process.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(process.status("NoNewPrivs"), "1");
    assert_eq!(process.status("Seccomp"), "2");
    for kind in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(process.namespace(kind), ours, "{kind}");
    }
    // Every thread is behind the same walls.
    for task in fs::read_dir(format!("/proc/{}/task", process.child.id())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2") && status.contains(&file_sharing));
    }
    // One mount: the share.
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", process.child.id())).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(
        mounts.contains(" / / ") && mounts.contains(" master:"),
        "{mounts}"
    );
    for flag in ["nosuid", "nodev", "noexec"] {
        assert!(mounts.contains(flag), "{mounts}");
    }
}

/// A guest may put anything into a name; Linux' own client never sends a slash.
#[test]
fn names_do_not_lead_out_of_the_share() {
    let process = Process::start();
    let outside = process.share.parent().unwrap().to_owned();
    let before = names(&outside);
    let root_inode = fs::metadata(&process.share).unwrap().ino();
    let mut fuse = Fuse::mount(&process.path("fs.sock"));
    let sub = fuse.mkdir(ROOT, "sub").unwrap().node;
    fs::write(process.share.join("file"), "content").unwrap();
    let file = fuse.lookup(ROOT, "file").unwrap().node;
    fuse.symlink(ROOT, "out", "../..").unwrap();
    fuse.symlink(ROOT, "absolute", outside.to_str().unwrap())
        .unwrap();

    let up = fuse.lookup(ROOT, "..").unwrap();
    assert_eq!(up.inode, root_inode, "the root's parent is the root");
    let ways = ["../", "../../", "/", "sub/../../", "out/", "./../"];
    for (number, way) in ways.into_iter().enumerate() {
        for parent in [ROOT, sub] {
            assert!(fuse.lookup(parent, &format!("{way}etc/passwd")).is_err());
            assert!(fuse.lookup(parent, &format!("{way}share")).is_err());
            assert!(fuse.lookup(parent, &format!("{way}fs.sock")).is_err());
            let new = |kind: &str| format!("{way}{kind}{number}{parent}");
            // Whether these succeed is the file server's business; where is ours.
            let _ = fuse.mkdir(parent, &new("dir"));
            let _ = fuse.create(parent, &new("file"));
            let _ = fuse.mknod(parent, &new("node"), libc::S_IFIFO | 0o644, 0);
            let _ = fuse.symlink(parent, &new("link"), "x");
            let _ = fuse.link(file, parent, &new("hard"));
            let _ = fuse.rename(parent, "file", &new("moved"));
            let _ = fuse.unlink(parent, &format!("{way}fs.sock"));
            let _ = fuse.rmdir(parent, &format!("{way}vsock"));
        }
    }
    assert!(fuse.mkdir(ROOT, "absolute/x").is_err());
    assert_eq!(names(&outside), before);
    assert_eq!(names(&outside.join("vsock")), ["vm.vsock"]);
}

fn names(directory: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What the monitor mounts under the share later shows up, as a mount of its own.
#[test]
fn later_mounts_arrive_and_leave() {
    let process = Process::start();
    let mut fuse = Fuse::mount(&process.path("fs.sock"));
    mounts_come_and_go(&process, &mut fuse);
}

/// The same where the file server remembers files by handle, which then take no
/// descriptor each.
#[test]
fn file_handles_find_their_mounts() {
    let settings = Settings {
        inodes: Inodes::Handles,
        ..Settings::default()
    };
    let process = Process::start_with(settings);
    let read_search = format!("{:016x}", FILE_SHARING | 1 << 2);
    assert_eq!(process.status("CapEff"), read_search);
    let mut fuse = Fuse::mount(&process.path("fs.sock"));
    mounts_come_and_go(&process, &mut fuse);
    let descriptors = format!("/proc/{}/fd", process.child.id());
    let before = fs::read_dir(&descriptors).unwrap().count();
    for number in 0..100 {
        fuse.mkdir(ROOT, &format!("known{number}")).unwrap();
    }
    assert_eq!(fs::read_dir(&descriptors).unwrap().count(), before);
}

fn mounts_come_and_go(process: &Process, fuse: &mut Fuse) {
    let place = process.share.join("volume");
    fs::create_dir(&place).unwrap();
    let under = fuse.lookup(ROOT, "volume").unwrap();
    assert_eq!(under.flags & ATTR_SUBMOUNT, 0);

    mount(
        Some("volume"),
        &place,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    fs::write(place.join("file"), "from the host").unwrap();
    let volume = fuse.lookup(ROOT, "volume").unwrap();
    assert_eq!(volume.flags & ATTR_SUBMOUNT, ATTR_SUBMOUNT);
    let file = fuse.lookup(volume.node, "file").unwrap();
    assert_eq!(fuse.read(file.node).unwrap(), b"from the host");
    fuse.mkdir(volume.node, "from the guest").unwrap();
    assert!(place.join("from the guest").is_dir());

    nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(fuse.lookup(ROOT, "volume").unwrap().inode, under.inode);
}

/// Device nodes can be made, as in a container with CAP_MKNOD, but this process
/// cannot be made to open them.
#[test]
fn device_nodes_stay_closed() {
    let process = Process::start();
    let mut fuse = Fuse::mount(&process.path("fs.sock"));
    let node = fuse
        .mknod(ROOT, "zero", libc::S_IFCHR | 0o666, 1 << 8 | 5)
        .unwrap();
    assert_eq!(node.mode & libc::S_IFMT, libc::S_IFCHR);
    assert!(fuse.read(node.node).is_err());
}

#[test]
fn it_ends_when_the_vmm_hangs_up() {
    let mut process = Process::start();
    let fuse = Fuse::mount(&process.path("fs.sock"));
    let vsock = std::os::unix::net::UnixStream::connect(process.path("vsock.sock")).unwrap();
    drop(fuse);
    std::thread::sleep(Duration::from_millis(100));
    assert!(
        process.child.try_wait().unwrap().is_none(),
        "vsock is still connected"
    );
    drop(vsock);
    assert!(process.child.wait().unwrap().success());
}

#[test]
fn it_dies_with_the_monitor() {
    let mut process = std::thread::spawn(Process::start).join().unwrap();
    let start = Instant::now();
    while process.child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_share_that_is_no_mount_point_is_refused() {
    let (mut process, mut ready) = Process::start_in("share-that-is-no-mount", Settings::default());
    assert_eq!(ready.read(&mut [0]).unwrap(), 0);
    assert_eq!(process.child.wait().unwrap().code(), Some(1));
}
