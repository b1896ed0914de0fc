//! `mounts`: what the guest mounts by itself and what the host shares.
//!
//! A bind mount becomes a slot in the sandbox's share and a bind mount from
//! there in the guest; the few host sources that the guest has itself (device
//! nodes, a tmpfs for /dev/shm) are replaced by its own. File systems that
//! need nothing of the host are made in the guest. Everything else is refused.

use casemate_protocol::{agent, paths};
use oci_spec::runtime::Mount;

use super::devices::guest_device;
use super::options::Options;
use super::path::in_container;
use super::{Bundle, Error, GuestPath, HostFacts, HostPath, Resolved, Share, Source};

/// The type of a bind mount, in config.json and for the guest.
const BIND: &str = "bind";

/// Types that mean the same in the guest, by what the guest calls them.
/// cgroup v1 is not among them: the guest has cgroup v2 only.
const GUEST_TYPES: &[(&str, &str)] = &[
    ("binfmt_misc", "binfmt_misc"),
    ("bpf", "bpf"),
    ("cgroup", "cgroup2"),
    ("cgroup2", "cgroup2"),
    ("configfs", "configfs"),
    ("devpts", "devpts"),
    ("devtmpfs", "devtmpfs"),
    ("fusectl", "fusectl"),
    ("hugetlbfs", "hugetlbfs"),
    ("mqueue", "mqueue"),
    ("proc", "proc"),
    ("ramfs", "ramfs"),
    ("securityfs", "securityfs"),
    ("sysfs", "sysfs"),
    ("tmpfs", "tmpfs"),
    ("tracefs", "tracefs"),
];

/// Where name servers are configured: resolv.conf(5).
const RESOLVER: &str = "/etc/resolv.conf";

/// The mounts of a container, split.
pub(super) struct Mounts {
    pub(super) shares: Vec<Share>,
    /// What is bound to [`RESOLVER`].
    pub(super) resolver: Option<HostPath>,
    pub(super) guest: Vec<agent::Mount>,
}

pub(super) fn split(
    mounts: &[Mount],
    bundle: Bundle<'_>,
    facts: &dyn HostFacts,
    warnings: &mut Vec<String>,
) -> Result<Mounts, Error> {
    let mut splitter = Splitter {
        bundle,
        facts,
        warnings,
        shares: Vec::new(),
        resolver: None,
    };
    let mut guest = Vec::new();
    for mount in mounts {
        guest.extend(splitter.split(&Wish::parse(mount)?)?);
    }
    Ok(Mounts {
        shares: splitter.shares,
        resolver: splitter.resolver,
        guest,
    })
}

/// A mount of config.json, read but not yet placed.
struct Wish<'a> {
    /// Its place, for errors.
    field: String,
    mount: &'a Mount,
    destination: String,
    options: Options,
}

impl<'a> Wish<'a> {
    fn parse(mount: &'a Mount) -> Result<Self, Error> {
        let written = mount.destination().to_string_lossy();
        let field = format!("mounts[{}]", written.escape_debug());
        let destination = in_container(&written);
        let wish = Self {
            mount,
            options: Options::parse(mount.options().as_deref().unwrap_or_default()),
            destination,
            field,
        };
        wish.check()?;
        Ok(wish)
    }

    fn check(&self) -> Result<(), Error> {
        if self.destination == "/" {
            let written = self.mount.destination().display();
            return Err(Error::invalid(
                "mounts",
                written,
                "is no destination of a mount",
            ));
        }
        let parts = [self.destination.as_str(), &self.source(), self.typ()];
        let data = self.options.data.iter().map(String::as_str);
        if parts
            .into_iter()
            .chain(data)
            .any(|part| part.contains('\0'))
        {
            return Err(Error::invalid(&self.field, "\\0", "is in a part of it"));
        }
        if self.options.has(libc::MS_REMOUNT) {
            return Err(self.unsupported("remount: every mount is made anew"));
        }
        let mapped = self.mount.uid_mappings().is_some() || self.mount.gid_mappings().is_some();
        if self.options.map_ids || mapped {
            return Err(self.unsupported("ID-mapped mounts do not exist on a virtio-fs share"));
        }
        Ok(())
    }

    fn typ(&self) -> &str {
        self.mount.typ().as_deref().unwrap_or_default()
    }

    fn source(&self) -> String {
        let source = self.mount.source().as_deref();
        source.map_or_else(String::new, |path| path.to_string_lossy().into_owned())
    }

    /// As runc has it, a bind option makes any other type meaningless.
    fn is_bind(&self) -> bool {
        self.options.has(libc::MS_BIND) || self.typ() == BIND
    }

    fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::unsupported(&self.field, reason)
    }

    /// The guest's mount, apart from where it comes from.
    fn guest_mount(&self, fstype: &str, source: String) -> agent::Mount {
        agent::Mount {
            destination: self.destination.clone(),
            fstype: fstype.to_owned(),
            source,
            flags: self.options.flags,
            propagation: self.options.propagation,
            recursive_set: self.options.set_below,
            recursive_clear: self.options.clear_below,
            copy_up: self.options.copy_up,
            ..agent::Mount::default()
        }
    }
}

struct Splitter<'a> {
    bundle: Bundle<'a>,
    facts: &'a dyn HostFacts,
    warnings: &'a mut Vec<String>,
    shares: Vec<Share>,
    resolver: Option<HostPath>,
}

impl Splitter<'_> {
    fn split(&mut self, wish: &Wish<'_>) -> Result<Option<agent::Mount>, Error> {
        if wish.is_bind() {
            self.bind(wish)
        } else {
            self.file_system(wish).map(Some)
        }
    }

    fn file_system(&mut self, wish: &Wish<'_>) -> Result<agent::Mount, Error> {
        let typ = wish.typ();
        if typ.is_empty() {
            return Err(Error::missing(format!("{}.type", wish.field)));
        }
        let Some((_, fstype)) = GUEST_TYPES.iter().find(|(name, _)| *name == typ) else {
            let reason =
                format!("a virtual machine cannot mount a {typ:?} file system of the host");
            return Err(wish.unsupported(reason));
        };
        if wish.options.copy_up && *fstype != "tmpfs" {
            return Err(Error::invalid(
                &wish.field,
                "tmpcopyup",
                "is for tmpfs only",
            ));
        }
        let source = match wish.source() {
            none if none.is_empty() => (*fstype).to_owned(),
            source => source,
        };
        let mut mount = wish.guest_mount(fstype, source);
        if typ == "cgroup" {
            mount.source = (*fstype).to_owned();
            self.dropped_data(
                wish,
                "is an option of cgroup v1, and the guest has cgroup v2",
            );
        } else {
            mount.data = wish.options.data.join(",");
        }
        Ok(mount)
    }

    fn bind(&mut self, wish: &Wish<'_>) -> Result<Option<agent::Mount>, Error> {
        let written = wish.source();
        if written.is_empty() {
            return Err(Error::missing(format!("{}.source", wish.field)));
        }
        if wish.options.copy_up {
            return Err(Error::invalid(
                &wish.field,
                "tmpcopyup",
                "is for tmpfs only",
            ));
        }
        let path = self.bundle.directory.join(&written);
        let found = self.facts.resolve(&path).map_err(|source| Error::Path {
            field: wish.field.clone(),
            path: path.clone(),
            source,
        })?;
        self.dropped_data(wish, "has no meaning for a bind mount");
        self.bind_resolved(wish, found)
    }

    fn bind_resolved(
        &mut self,
        wish: &Wish<'_>,
        found: Resolved,
    ) -> Result<Option<agent::Mount>, Error> {
        let path = found.path;
        let refuse = |what: &str| Err(wish.unsupported(format!("{path} is {what}")));
        match found.source {
            Source::Tmpfs { size } if is_private_shm(wish, &path) => {
                Ok(Some(shared_memory(wish, &path, size)))
            }
            Source::Directory | Source::Tmpfs { .. } => Ok(Some(self.share(wish, path, false))),
            Source::File => Ok(Some(self.share(wish, path, true))),
            Source::CharacterDevice { major, minor } => match guest_device(major, minor) {
                Some(node) => Ok(Some(guest_bind(wish, GuestPath::device(node), true))),
                None => refuse("a host device, which a virtual machine does not have"),
            },
            Source::BlockDevice => refuse("a host device, which a virtual machine does not have"),
            Source::Fifo => refuse("a named pipe, which does not reach into a virtual machine"),
            Source::Socket => refuse("a socket, which does not reach into a virtual machine"),
            Source::Kernel { fstype } if is_cgroup(fstype, wish) => {
                // podman binds the host's systemd hierarchy (cgroup v1) there.
                let warning = "the guest's own cgroup file system is there instead of the host's";
                self.warnings.push(format!("{}: {warning}", wish.field));
                Ok(None)
            }
            Source::Kernel { fstype } => refuse(&format!(
                "part of the host's {fstype} file system, which cannot be shared with a virtual \
                 machine"
            )),
        }
    }

    /// Gives `path` a slot in the share.
    fn share(&mut self, wish: &Wish<'_>, path: HostPath, is_file: bool) -> agent::Mount {
        self.warn_of_propagation(wish);
        if wish.destination == RESOLVER {
            self.resolver = Some(path.clone());
        }
        let n = self.shares.len();
        let readonly_below = wish.options.set_below & libc::MOUNT_ATTR_RDONLY != 0;
        self.shares.push(Share {
            source: path,
            slot: paths::volume_slot(self.bundle.container_id, n),
            readonly: readonly_below || wish.options.has(libc::MS_RDONLY),
            readonly_below,
            recursive: wish.options.has(libc::MS_REC),
            follows: wish.options.propagation & (libc::MS_SLAVE | libc::MS_SHARED) != 0,
            is_file,
        });
        guest_bind(
            wish,
            GuestPath::volume(self.bundle.container_id, n),
            is_file,
        )
    }

    fn warn_of_propagation(&mut self, wish: &Wish<'_>) {
        let propagation = wish.options.propagation;
        if propagation & libc::MS_SHARED != 0 {
            let warning = "shared: mounts that the container makes stay in the virtual machine";
            self.warnings.push(format!("{}: {warning}", wish.field));
        }
    }

    fn dropped_data(&mut self, wish: &Wish<'_>, reason: &str) {
        for word in &wish.options.data {
            self.warnings
                .push(format!("{}: {word:?} {reason}", wish.field));
        }
    }
}

fn guest_bind(wish: &Wish<'_>, source: GuestPath, is_file: bool) -> agent::Mount {
    let mut mount = wish.guest_mount(BIND, source.into_string());
    mount.flags |= libc::MS_BIND;
    mount.source_is_file = is_file;
    mount
}

/// podman and containerd keep the /dev/shm of each container or pod as a tmpfs
/// of the host; memory that a virtual machine shares by virtio-fs would be
/// neither fast nor coherent. Those who name the same one share one of the
/// guest. Who asks for the host's own gets that.
fn is_private_shm(wish: &Wish<'_>, source: &HostPath) -> bool {
    wish.destination == "/dev/shm" && source.as_path() != std::path::Path::new("/dev/shm")
}

fn shared_memory(wish: &Wish<'_>, source: &HostPath, size: u64) -> agent::Mount {
    let mut mount = wish.guest_mount("tmpfs", "shm".to_owned());
    mount.flags &= !(libc::MS_BIND | libc::MS_REC);
    mount.shared = source.to_string();
    mount.data = match size {
        0 => "mode=1777".to_owned(),
        size => format!("mode=1777,size={size}"),
    };
    mount
}

fn is_cgroup(fstype: &str, wish: &Wish<'_>) -> bool {
    fstype.starts_with("cgroup")
        && std::path::Path::new(&wish.destination).starts_with("/sys/fs/cgroup")
}
