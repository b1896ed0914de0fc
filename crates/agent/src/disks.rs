//! Root file systems on disks of their own: the host plugs a disk and names it by
//! its serial; here it is waited for, mounted, and let go before the host takes
//! it away again.
//!
//! What a disk holds is whatever a container has left there, and takes its time:
//! mounting and unmounting are done by children.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use casemate_linux::process::{Birth, Exit, spawn};
use casemate_protocol::agent;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::syncfs,
};

use crate::{
    arrival::{self, until_seen},
    error::{Doing, Error, Result},
    reaper::Reaper,
};

/// Where they are mounted, each under its serial.
const FOLDER: &str = "/run/casemate/disks";

/// Where the kernel lists disks, and their nodes.
const CLASS: &str = "/sys/class/block";
const NODES: &str = "/dev";

/// How long the kernel may take to let go of a disk that has been unmounted: the
/// last of its users may still be ending.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);
const RELEASE_PAUSE: Duration = Duration::from_millis(2);

/// A mounted disk.
#[derive(Debug)]
pub(crate) struct Disk {
    node: PathBuf,
    place: PathBuf,
}

impl Disk {
    /// Waits for a disk and mounts it.
    pub(crate) async fn mount(wanted: &agent::Disk, reaper: &Reaper) -> Result<Self> {
        let name = arrived(&wanted.serial).await?;
        let disk = Self {
            node: Path::new(NODES).join(name),
            place: Path::new(FOLDER).join(&wanted.serial),
        };
        let what = || format!("mount {} of disk {}", wanted.fstype, wanted.serial);
        fs::create_dir_all(&disk.place).doing(what)?;
        let mounted = in_child(reaper, || disk.attach(wanted)).await;
        if mounted.is_err() {
            // It is empty.
            let _ = fs::remove_dir(&disk.place);
        }
        mounted.doing(what)?;
        Ok(disk)
    }

    /// Where its file system is.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Unmounts it, when no process of its container is left. Answers when the
    /// kernel has written everything and does not use the disk any more.
    pub(crate) async fn release(&self, reaper: &Reaper) -> Result<()> {
        in_child(reaper, || self.detach())
            .await
            .doing(|| format!("unmount {}", self.place.display()))
    }

    fn attach(&self, wanted: &agent::Disk) -> io::Result<()> {
        Ok(mount(
            Some(&self.node),
            &self.place,
            Some(wanted.fstype.as_str()),
            MsFlags::from_bits_retain(wanted.flags),
            Some(wanted.data.as_str()),
        )?)
    }

    /// Can be repeated.
    fn detach(&self) -> io::Result<()> {
        match File::open(&self.place) {
            Ok(root) => syncfs(&root)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.free(),
            Err(error) => return Err(error),
        }
        match umount2(&self.place, MntFlags::MNT_DETACH) {
            // An earlier attempt has got as far as this.
            Ok(()) | Err(Errno::EINVAL) => {}
            other => other?,
        }
        fs::remove_dir(&self.place)?;
        self.free()
    }

    /// Waits until nobody has the disk: a mounted file system has it for itself
    /// alone.
    fn free(&self) -> io::Result<()> {
        let begin = std::time::Instant::now();
        loop {
            let mut alone = File::options();
            match alone.read(true).custom_flags(libc::O_EXCL).open(&self.node) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                // Or it has gone.
                _ => return Ok(()),
            }
            if begin.elapsed() > RELEASE_LIMIT {
                return Err(Errno::EBUSY.into());
            }
            std::thread::sleep(RELEASE_PAUSE);
        }
    }
}

/// Has a child do what may take long, or never return.
async fn in_child(reaper: &Reaper, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let child = spawn(Birth::default(), || match work() {
        Ok(()) => 0,
        // Every error number of the kernel fits into an exit code.
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    })?;
    match reaper.watch(child.pid()).reached().await.exit {
        Exit::Code(0) => Ok(()),
        Exit::Code(number) => Err(io::Error::from_raw_os_error(number)),
        exit @ Exit::Signal(_) => Err(io::Error::other(exit.to_string())),
    }
}

/// The kernel's name of a disk; waits for one that is on its way.
async fn arrived(serial: &str) -> Result<String> {
    let look = || find(Path::new(CLASS), serial).doing(|| format!("look for disk {serial}"));
    let name = until_seen(arrival::LIMIT, look).await?;
    name.ok_or_else(|| Error::NoDisk {
        serial: serial.to_owned(),
        limit: arrival::LIMIT,
    })
}

fn find(class: &Path, serial: &str) -> io::Result<Option<String>> {
    for disk in fs::read_dir(class)? {
        let disk = disk?;
        // Not every block device has one, and one may be going.
        let told = fs::read_to_string(disk.path().join("serial"));
        if told.is_ok_and(|told| told.trim_end_matches('\n') == serial) {
            return Ok(Some(disk.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_disk_is_found_by_its_serial() {
        let class = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "root-1\n"), ("vdb", "root-12\n"), ("vdc", "root")] {
            fs::create_dir(class.path().join(name)).unwrap();
            fs::write(class.path().join(name).join("serial"), serial).unwrap();
        }
        fs::create_dir(class.path().join("loop0")).unwrap();
        let find = |serial| find(class.path(), serial).unwrap();
        assert_eq!(find("root-12").as_deref(), Some("vdb"));
        assert_eq!(find("root-1").as_deref(), Some("vda"));
        assert_eq!(find("root-3"), None);
    }

    /// What a program says, if it succeeds.
    fn say(program: &str, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new(program);
        let done = command
            .args(arguments)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&done.stdout).trim().to_owned();
        done.status.success().then_some(text)
    }

    #[test]
    fn a_disk_is_released_when_the_last_user_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let image = image.to_str().unwrap();
        let node = say("mkfs.ext4", &["-q", image])
            .and_then(|_| say("losetup", &["--find", "--show", image]));
        let Some(node) = node else {
            println!("skipped: no loop device or no mkfs.ext4");
            return;
        };
        let disk = Disk {
            node: PathBuf::from(&node),
            place: folder.path().join("place"),
        };
        let wanted = |fstype: &str| agent::Disk {
            fstype: fstype.into(),
            ..agent::Disk::default()
        };
        fs::create_dir(&disk.place).unwrap();
        let foreign = disk.attach(&wanted("xfs")).unwrap_err();
        disk.attach(&wanted("ext4")).unwrap();
        let user = File::create(disk.place.join("file")).unwrap();
        let busy = File::options()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&node)
            .unwrap_err();
        let leaving = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(user);
        });
        disk.detach().unwrap();
        disk.detach().unwrap();
        leaving.join().unwrap();
        let gone = !disk.place.exists();
        say("losetup", &["--detach", &node]).unwrap();
        assert!(gone && foreign.raw_os_error().is_some());
        assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    }
}
