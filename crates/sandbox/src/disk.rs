//! Root file systems that are block devices, or images of such: containerd's
//! devmapper and blockfile snapshotters make them.
//!
//! The guest gets them as disks. The host opens them and never mounts them: what
//! a container has written there is read by the guest's kernel alone.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use casemate_hypervisor::{BlockDevice, Device, DeviceId, Vm};
use casemate_protocol::agent;
use nix::libc;

use crate::{rootfs::RootMount, spec::MountOptions};

/// The file systems that the guest's kernel knows how to find on a disk.
const TYPES: [&str; 5] = ["erofs", "ext2", "ext3", "ext4", "xfs"];

/// What makes mount(8) put a block device in front of an image.
const LOOP: &str = "loop";

/// How much of a random number makes a serial: a disk's has 20 bytes at most.
const SERIAL_DIGITS: usize = 15;

/// A root file system that goes to the guest as a disk.
#[derive(Debug)]
pub(crate) struct RootDisk {
    image: File,
    fstype: String,
    /// MS_*.
    flags: u64,
    /// For the file system.
    data: String,
}

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image or device.
    #[error("root file system {path}: {source}", path = path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Network cards and disks take one each.
    #[error(
        "the machine has no hotplug slot left for the disk of a root file system (it has {slots}); \
         raise machine.hotplug_slots"
    )]
    Slots {
        /// All that there are.
        slots: u32,
    },
    /// The machine.
    #[error("disk of the root file system: {0}")]
    Machine(casemate_hypervisor::Error),
}

impl RootDisk {
    /// The disk that a root file system is on, if it is on one: a single mount of
    /// a file system from a file or block device. As this thread sees the host's
    /// files.
    ///
    /// # Errors
    /// When it cannot be opened, or somebody has the device mounted.
    pub(crate) fn of(mounts: &[RootMount]) -> Result<Option<Self>, Error> {
        let [mount] = mounts else { return Ok(None) };
        let at_root = mount.target.as_os_str().is_empty() || mount.target == Path::new("/");
        if !at_root || !TYPES.contains(&mount.fstype.as_str()) {
            return Ok(None);
        }
        let mut options = MountOptions::parse(&mount.options);
        options.data.retain(|option| option != LOOP);
        let image = open(&mount.source, options.flags).map_err(|source| Error::Open {
            path: mount.source.clone(),
            source,
        })?;
        Ok(Some(Self {
            image,
            fstype: mount.fstype.clone(),
            flags: options.flags,
            data: options.data.join(","),
        }))
    }

    /// Plugs it into the machine: how the guest finds it, and how it is taken out
    /// again.
    ///
    /// # Errors
    /// No free slot; a machine that refuses, for example because another one has
    /// the image.
    pub(crate) async fn plug(self, vm: &dyn Vm) -> Result<(agent::Disk, DeviceId), Error> {
        let serial = serial().map_err(|source| Error::Open {
            path: NUMBER.into(),
            source,
        })?;
        let device = Device::Block(BlockDevice {
            read_only: is_read_only(self.flags),
            image: self.image,
            serial: serial.clone(),
        });
        let id = vm.plug(device).await.map_err(|error| match error {
            casemate_hypervisor::Error::NoFreeSlot { slots } => Error::Slots { slots },
            other => Error::Machine(other),
        })?;
        let disk = agent::Disk {
            serial,
            fstype: self.fstype,
            flags: self.flags,
            data: self.data,
            ..agent::Disk::default()
        };
        Ok((disk, id))
    }
}

fn is_read_only(flags: u64) -> bool {
    flags & libc::MS_RDONLY != 0
}

/// A device that is to be written to is for nobody else meanwhile.
fn open(path: &Path, flags: u64) -> io::Result<File> {
    let writable = !is_read_only(flags);
    let metadata = path.metadata()?;
    let exclusive = match metadata.file_type().is_block_device() {
        true if writable => libc::O_EXCL,
        true => 0,
        false if metadata.is_file() => 0,
        false => {
            let problem = "neither a block device nor a file with an image of one";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
    };
    OpenOptions::new()
        .read(true)
        .write(writable)
        // Should it have become a pipe, nobody waits.
        .custom_flags(exclusive | libc::O_NONBLOCK)
        .open(path)
}

const NUMBER: &str = "/proc/sys/kernel/random/uuid";

fn serial() -> io::Result<String> {
    let number = std::fs::read_to_string(NUMBER)?;
    let digits = number.chars().filter(char::is_ascii_hexdigit);
    Ok(digits.take(SERIAL_DIGITS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fstype: &str, source: &Path, options: &[&str]) -> RootMount {
        RootMount {
            fstype: fstype.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..RootMount::default()
        }
    }

    #[test]
    fn an_image_is_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap();
        let disk = |options: &[&str]| {
            let disk = RootDisk::of(&[mount("ext4", &image, options)]);
            disk.unwrap().expect("it is one")
        };
        let written = disk(&["loop", "rw", "noatime", "discard"]);
        assert_eq!(
            (written.flags, written.data.as_str()),
            (libc::MS_NOATIME, "discard")
        );
        io::Write::write_all(&mut &written.image, b"x").unwrap();
        let read = disk(&["ro", "loop"]);
        assert_eq!((read.flags, read.data.as_str()), (libc::MS_RDONLY, ""));
        io::Write::write_all(&mut &read.image, b"x").unwrap_err();
    }

    #[test]
    fn anything_else_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap();
        let ext4 = mount("ext4", &image, &["loop"]);
        let below = RootMount {
            target: "data".into(),
            ..ext4.clone()
        };
        let others = [
            vec![],
            vec![mount("overlay", &image, &[])],
            vec![mount("bind", &image, &["rbind"])],
            vec![ext4.clone(), ext4],
            vec![below],
        ];
        for mounts in others {
            assert!(RootDisk::of(&mounts).unwrap().is_none(), "{mounts:?}");
        }
    }

    #[test]
    fn what_cannot_be_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |path: &Path| {
            let refused = RootDisk::of(&[mount("xfs", path, &[])]);
            refused.unwrap_err().to_string()
        };
        let text = refusal(folder.path());
        assert!(
            text.ends_with("neither a block device nor a file with an image of one"),
            "{text}"
        );
        let missing = folder.path().join("missing");
        let text = refusal(&missing);
        assert!(
            text.starts_with(&format!("root file system {}: ", missing.display())),
            "{text}"
        );
    }

    #[test]
    fn serials_fit_and_differ() {
        let (one, two) = (serial().unwrap(), serial().unwrap());
        assert!(one.len() <= 20 && one != two, "{one} {two}");
    }
}
