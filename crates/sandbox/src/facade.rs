//! What a client finds that enters the mount namespace of a stand-in.
//!
//! Podman copies files into and out of a running container that way, and lists
//! its processes. So the container's root and volumes are mounted there, over
//! the empty root in which the stand-in itself stays. They are the host's side
//! of what the guest uses, and inert: nothing in them can be executed or opened
//! as a device, which is what keeps a container from waiting there for the
//! host's administrator. What only the guest has (a tmpfs, /dev, /sys) is an
//! empty folder that nobody can write to.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use casemate_linux::{
    mount::{self, Within, attr},
    namespace,
};
use casemate_protocol::{
    agent::{ContainerSpec, Mount},
    paths,
};
use nix::mount::MsFlags;

/// What is in the stand-in's own root: a list of the processes in its PID
/// namespace.
pub const PROCESSES: &str = "proc";
/// And a folder with nothing in it, by which its root is known.
pub const NOTHING: &str = ".nothing";

/// A container's files as they can be shown.
#[derive(Debug)]
pub(crate) struct Facade {
    namespace: File,
    root: OwnedFd,
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    /// Relative to the container's root.
    destination: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Volume(OwnedFd),
    Processes,
    Nothing,
}

impl Facade {
    /// Copies what is in the share for the container, for the mount namespace of
    /// its stand-in.
    ///
    /// # Errors
    /// ENOENT when something is not there.
    pub(crate) fn new(
        namespace: File,
        share: &Path,
        id: &str,
        guest: &ContainerSpec,
    ) -> io::Result<Self> {
        let root = copy(&share.join(paths::rootfs_slot(id)))?;
        if guest.readonly_rootfs {
            mount::set_attributes(root.as_fd(), attr::RDONLY, 0, MsFlags::empty(), false)?;
        }
        let places = guest.mounts.iter().map(|mount| {
            Ok(Place {
                destination: mount.destination.trim_start_matches('/').to_owned(),
                content: content(share, mount)?,
            })
        });
        Ok(Self {
            namespace,
            root,
            places: places.collect::<io::Result<_>>()?,
        })
    }

    /// Mounts it. The guest must have made the mount points.
    ///
    /// # Errors
    /// EPERM without the right to enter the namespace.
    pub(crate) fn show(&self) -> io::Result<()> {
        namespace::within_mounts(self.namespace.as_fd(), || self.mount())?
    }

    fn mount(&self) -> io::Result<()> {
        // Our root stays the old one, also when there is another one over it.
        let own = |name: &str| mount::clone_tree(&Path::new("/").join(name), false);
        let processes = own(PROCESSES)?;
        // Nobody else's root has this: no other may be covered.
        own(NOTHING)?;
        mount::attach(self.root.as_fd(), File::open("/")?.as_fd())?;
        for place in &self.places {
            let empty;
            let tree = match &place.content {
                Content::Volume(tree) => tree,
                Content::Processes => &processes,
                Content::Nothing => {
                    empty = own(NOTHING)?;
                    &empty
                }
            };
            if let Err(error) = self.place(&place.destination, tree) {
                // It is below something that only the guest has.
                tracing::debug!(place = place.destination, %error, "not in the view");
            }
        }
        Ok(())
    }

    fn place(&self, destination: &str, tree: &OwnedFd) -> io::Result<()> {
        let destination = Path::new(destination);
        let root = self.root.as_fd();
        let target = mount::open_in(root, destination, Within::Root, libc::O_PATH, 0)?;
        mount::attach(tree.as_fd(), target.as_fd())
    }
}

fn content(share: &Path, mount: &Mount) -> io::Result<Content> {
    let below_share = |path: &str| path.strip_prefix(paths::SHARE).map(str::to_owned);
    if let Some(slot) = below_share(&mount.source) {
        let tree = copy(&share.join(slot.trim_start_matches('/')))?;
        return Ok(Content::Volume(tree));
    }
    Ok(match mount.fstype.as_str() {
        "proc" => Content::Processes,
        _ => Content::Nothing,
    })
}

/// An inert copy of what is mounted in the share, that no longer follows it.
fn copy(path: &Path) -> io::Result<OwnedFd> {
    let tree = mount::clone_tree(path, true)?;
    let inert = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    mount::set_attributes(tree.as_fd(), inert, 0, MsFlags::MS_PRIVATE, true)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use casemate_linux::process::{Birth, Exit, spawn};
    use nix::{
        mount::{MntFlags, umount2},
        sched::{CloneFlags, unshare},
        sys::statvfs::{FsFlags, statvfs},
        unistd::{chdir, pivot_root},
    };

    use super::*;

    /// Makes a root as a stand-in has it the one of this thread.
    fn enter_root(stage: &Path) -> io::Result<File> {
        const NONE: Option<&str> = None;
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        let namespace = File::open("/proc/thread-self/ns/mnt")?;
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        nix::mount::mount(NONE, "/", NONE, private, NONE)?;
        nix::mount::mount(Some("own"), stage, Some("tmpfs"), MsFlags::empty(), NONE)?;
        fs::create_dir(stage.join(PROCESSES))?;
        fs::write(stage.join(PROCESSES).join("list"), "")?;
        fs::create_dir(stage.join(NOTHING))?;
        chdir(stage)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        Ok(namespace)
    }

    /// A share with a root and a volume.
    fn fill(share: &Path) -> io::Result<()> {
        let root = share.join("web/rootfs");
        for folder in ["proc", "dev", "etc", "real"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::write(root.join("etc/name"), "web")?;
        std::os::unix::fs::symlink("/real", root.join("data"))?;
        fs::create_dir_all(share.join("web/mounts/0"))?;
        fs::write(share.join("web/mounts/0/file"), "volume")
    }

    fn spec() -> ContainerSpec {
        let mount = |destination: &str, fstype: &str, source: String| Mount {
            destination: destination.into(),
            fstype: fstype.into(),
            source,
            ..Default::default()
        };
        ContainerSpec {
            mounts: vec![
                mount("/proc", "proc", "proc".into()),
                mount("/dev", "tmpfs", "tmpfs".into()),
                mount("/dev/pts", "devpts", "devpts".into()),
                mount("/data", "bind", paths::volume("web", 0)),
            ],
            ..Default::default()
        }
    }

    fn check() -> io::Result<()> {
        assert_eq!(fs::read_to_string("/etc/name")?, "web");
        assert!(Path::new("/proc/list").exists());
        assert_eq!(fs::read_to_string("/real/file")?, "volume");
        assert_eq!(fs::read_dir("/dev")?.count(), 0);
        fs::write("/data/new", "")?;
        let inert = FsFlags::ST_NOEXEC | FsFlags::ST_NODEV | FsFlags::ST_NOSUID;
        for place in ["/etc", "/data"] {
            assert!(statvfs(place)?.flags().contains(inert), "{place}");
        }
        Ok(())
    }

    fn shows(directory: &Path) -> io::Result<()> {
        let (share, stage) = (directory.join("share"), directory.join("stage"));
        fs::create_dir(&stage)?;
        fill(&share)?;
        let stand_in = std::thread::spawn(move || enter_root(&stage)).join();
        let namespace = stand_in.expect("no panic")?;
        let again = namespace.try_clone()?;
        Facade::new(namespace, &share, "web", &spec())?.show()?;
        namespace::within_mounts(again.as_fd(), check)??;
        assert!(share.join("web/mounts/0/new").exists());
        Ok(())
    }

    /// The root of anybody else is left as it is.
    fn spares_others(directory: &Path) -> io::Result<()> {
        let own = File::open("/proc/thread-self/ns/mnt")?;
        let view = Facade::new(own, &directory.join("share"), "web", &spec())?;
        assert_eq!(view.show().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!Path::new("/etc/name").exists());
        Ok(())
    }

    #[test]
    fn who_enters_a_stand_in_finds_the_containers_files() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root to mount");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let birth = Birth {
            namespaces: Some(CloneFlags::CLONE_NEWNS),
            ..Default::default()
        };
        let child = spawn(birth, || {
            let works = shows(directory.path()).and_then(|()| spares_others(directory.path()));
            works.map_err(|error| eprintln!("{error}")).is_err().into()
        });
        assert_eq!(child.unwrap().wait().unwrap(), Exit::Code(0));
    }
}
