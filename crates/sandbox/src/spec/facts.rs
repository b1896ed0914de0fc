//! What the split needs to know of the host.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use nix::sys::statfs::{self, FsType};
use oci_spec::runtime::LinuxNamespaceType;

use super::HostPath;
use crate::neighbours::Neighbours;

/// Answers questions about the host.
pub trait HostFacts {
    /// What `path` leads to, symbolic links followed.
    fn resolve(&self, path: &HostPath) -> io::Result<Resolved>;

    /// Whether `path` is the host's network namespace.
    fn is_host_network(&self, path: &HostPath) -> io::Result<bool>;

    /// The running container to which the namespace at `path`
    /// (`/proc/<pid of its stand-in>/ns/…`) belongs.
    fn container_of(&self, kind: LinuxNamespaceType, path: &HostPath) -> Option<String>;
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The same place without symbolic links.
    pub path: HostPath,
    /// What is there.
    pub source: Source,
}

/// What is found at a path of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder.
    Directory,
    /// The root of a tmpfs.
    Tmpfs {
        /// Its limit in bytes, 0 = none.
        size: u64,
    },
    /// A regular file.
    File,
    /// A character device.
    CharacterDevice {
        /// Its driver.
        major: u64,
        /// Its instance.
        minor: u64,
    },
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
    /// A folder or file by which the host's kernel shows itself.
    Kernel {
        /// Type of its file system.
        fstype: &'static str,
    },
}

/// The host that this process runs on, and the containers there.
#[derive(Clone, Copy, Debug)]
pub struct LiveHost<'a>(pub &'a Neighbours);

impl HostFacts for LiveHost<'_> {
    fn resolve(&self, path: &HostPath) -> io::Result<Resolved> {
        let canonical = fs::canonicalize(path.as_path())?;
        let source = source_at(&canonical)?;
        let path = HostPath::new(canonical)
            .ok_or_else(|| io::Error::other("no absolute path leads there"))?;
        Ok(Resolved { path, source })
    }

    fn is_host_network(&self, path: &HostPath) -> io::Result<bool> {
        let asked = fs::metadata(path.as_path())?;
        // Asked by a process that has not left it. (That of pid 1 may not be
        // looked at in a container.)
        let host = fs::metadata("/proc/self/ns/net")?;
        Ok((asked.dev(), asked.ino()) == (host.dev(), host.ino()))
    }

    fn container_of(&self, kind: LinuxNamespaceType, path: &HostPath) -> Option<String> {
        let neighbour = self.0.of_namespace(kind, path.as_path());
        neighbour.map(|neighbour| neighbour.id.clone())
    }
}

fn source_at(path: &Path) -> io::Result<Source> {
    let metadata = fs::symlink_metadata(path)?;
    let file_type = metadata.file_type();
    if file_type.is_char_device() {
        return Ok(Source::CharacterDevice {
            major: libc::major(metadata.rdev()).into(),
            minor: libc::minor(metadata.rdev()).into(),
        });
    }
    if file_type.is_block_device() {
        return Ok(Source::BlockDevice);
    }
    if file_type.is_fifo() {
        return Ok(Source::Fifo);
    }
    if file_type.is_socket() {
        return Ok(Source::Socket);
    }
    let file_system = statfs::statfs(path)?;
    if let Some(fstype) = kernel_file_system(path, file_system.filesystem_type()) {
        return Ok(Source::Kernel { fstype });
    }
    if !file_type.is_dir() {
        return Ok(Source::File);
    }
    if file_system.filesystem_type() == statfs::TMPFS_MAGIC && is_mount_point(path)? {
        let size = file_system.blocks() * file_system.block_size() as u64;
        return Ok(Source::Tmpfs { size });
    }
    Ok(Source::Directory)
}

/// The type of a file system that is a view of the running kernel rather than
/// a store of files.
fn kernel_file_system(path: &Path, fstype: FsType) -> Option<&'static str> {
    // linux/magic.h; those that the bindings do not name.
    const CONFIGFS: FsType = FsType(0x6265_6570);
    const MQUEUE: FsType = FsType(0x1980_0202);
    let by_type = match fstype {
        statfs::PROC_SUPER_MAGIC => Some("proc"),
        statfs::SYSFS_MAGIC => Some("sysfs"),
        statfs::CGROUP_SUPER_MAGIC => Some("cgroup"),
        statfs::CGROUP2_SUPER_MAGIC => Some("cgroup2"),
        statfs::DEVPTS_SUPER_MAGIC => Some("devpts"),
        statfs::DEBUGFS_MAGIC => Some("debugfs"),
        statfs::TRACEFS_MAGIC => Some("tracefs"),
        statfs::SECURITYFS_MAGIC => Some("securityfs"),
        statfs::BPF_FS_MAGIC => Some("bpf"),
        CONFIGFS => Some("configfs"),
        MQUEUE => Some("mqueue"),
        _ => None,
    };
    // Two are a tmpfs by their type: the folder of the cgroup v1 hierarchies,
    // and devtmpfs, below which only /dev/shm holds files.
    by_type.or_else(|| {
        let below = |folder| path.starts_with(folder);
        if below("/sys/fs/cgroup") {
            Some("cgroup")
        } else if below("/dev") && !below("/dev/shm") {
            Some("devtmpfs")
        } else {
            None
        }
    })
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else {
        return Ok(true);
    };
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn resolve(path: impl AsRef<Path>) -> io::Result<Resolved> {
        LiveHost(&Neighbours::default()).resolve(&HostPath::new(path.as_ref()).unwrap())
    }

    #[test]
    fn kinds_of_files_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("file"), "").unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        symlink("folder", at("link")).unwrap();

        let source = |name| resolve(at(name)).unwrap().source;
        assert_eq!(source("folder"), Source::Directory);
        assert_eq!(source("file"), Source::File);
        assert_eq!(source("fifo"), Source::Fifo);
        assert_eq!(source("socket"), Source::Socket);
        let link = resolve(at("link")).unwrap();
        assert!(link.path.as_path().ends_with("folder"));
        assert_eq!(link.source, Source::Directory);
        let missing = resolve(at("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn views_of_the_kernel_are_known() {
        let kernel = |fstype| Source::Kernel { fstype };
        assert_eq!(resolve("/proc").unwrap().source, kernel("proc"));
        assert_eq!(resolve("/proc/version").unwrap().source, kernel("proc"));
        assert_eq!(resolve("/sys/kernel").unwrap().source, kernel("sysfs"));
        assert_eq!(resolve("/dev").unwrap().source, kernel("devtmpfs"));
        let null = Source::CharacterDevice { major: 1, minor: 3 };
        assert_eq!(resolve("/dev/null").unwrap().source, null);
    }

    #[test]
    fn the_network_namespace_of_the_host_is_recognized() {
        let host = |path: &str| {
            LiveHost(&Neighbours::default()).is_host_network(&HostPath::new(path).unwrap())
        };
        assert!(host("/proc/self/ns/net").unwrap());
        assert!(!host("/proc/self/ns/mnt").unwrap());
        assert!(host("/proc/self/ns/none").is_err());
    }
}
