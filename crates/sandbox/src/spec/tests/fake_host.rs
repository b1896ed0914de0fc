//! A host that exists in memory only.

use std::io;

use oci_spec::runtime::LinuxNamespaceType;

use crate::spec::{HostFacts, HostPath, Resolved, Source};

/// Knows what is at each of its paths by their names: those of the golden
/// configurations and of the tests.
pub(super) struct FakeHost;

impl HostFacts for FakeHost {
    fn resolve(&self, path: &HostPath) -> io::Result<Resolved> {
        let name = path.as_path().file_name().unwrap_or_default();
        let source = match name.to_str().unwrap_or_default() {
            "missing" => return Err(io::ErrorKind::NotFound.into()),
            "shm" => Source::Tmpfs { size: 65_536_000 },
            ".containerenv" | "hostname" | "hosts" | "resolv.conf" | "localtime" | "catatonit"
            | "file" => Source::File,
            "null" => Source::CharacterDevice { major: 1, minor: 3 },
            "ttyS0" => Source::CharacterDevice {
                major: 4,
                minor: 64,
            },
            "sda" => Source::BlockDevice,
            "fifo" => Source::Fifo,
            "docker.sock" => Source::Socket,
            "systemd" => Source::Kernel { fstype: "cgroup" },
            "proc" => Source::Kernel { fstype: "proc" },
            _ => Source::Directory,
        };
        Ok(Resolved {
            path: path.clone(),
            source,
        })
    }

    fn is_host_network(&self, path: &HostPath) -> io::Result<bool> {
        match path.as_path().to_str() {
            Some("/proc/1/ns/net") => Ok(true),
            Some("/run/netns/missing") => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(false),
        }
    }

    fn container_of(&self, _: LinuxNamespaceType, path: &HostPath) -> Option<String> {
        path.as_path()
            .starts_with("/proc/4242/ns")
            .then(|| "infra".to_owned())
    }
}
