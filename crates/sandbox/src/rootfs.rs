//! Root file systems that a client describes as mounts: containerd's
//! snapshotters make the layers and leave the mounting to the runtime.
//!
//! They are mounted in a namespace that exists for one call. What comes out is
//! a detached copy; nothing shows on the host, and when the last copy goes the
//! kernel takes the mounts down.

use std::{
    ffi::OsStr,
    io,
    os::fd::OwnedFd,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use casemate_linux::mount as detached;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::spec::MountOptions;

/// A mount as containerd describes it (`containerd.types.Mount`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootMount {
    /// Type of the file system, or "bind".
    pub fstype: String,
    /// What is mounted.
    pub source: PathBuf,
    /// Where, relative to the root file system; empty for the root itself.
    pub target: PathBuf,
    /// As in fstab(5).
    pub options: Vec<String>,
}

/// A mount that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("root file system: {what}: {source}")]
pub struct Error {
    what: String,
    source: io::Error,
}

/// Longest text of options that the kernel takes: a page, less its end.
const MAX_OPTIONS: usize = 4095;

const NONE: Option<&str> = None;

/// Mounts everything at `place`, which exists, and returns a detached copy of
/// that. For a thread that ends afterwards: it is left in a mount namespace
/// where that is so, and perhaps in another working directory.
///
/// # Errors
/// What could not be mounted.
pub fn assemble(mounts: &[RootMount], place: &Path) -> Result<OwnedFd, Error> {
    let alone = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // What is mounted on the host still comes here, and nothing goes there.
        mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)
    };
    alone().map_err(failed("new mount namespace"))?;
    for one in mounts {
        let target = inside(place, &one.target)?;
        attach(one, &target)?;
    }
    detached::clone_tree(place, true).map_err(failed(format!("copy of {}", place.display())))
}

fn failed<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    move |error| Error {
        what: what.into(),
        source: error.into(),
    }
}

/// A place in the root file system. What it has of links is the client's, like
/// the rest of it.
fn inside(place: &Path, target: &Path) -> Result<PathBuf, Error> {
    let parts = target.components();
    let inner: PathBuf = parts.filter(|part| *part != Component::RootDir).collect();
    let climbs = inner.components().any(|part| part == Component::ParentDir);
    if climbs {
        let what = format!("target {}", target.display());
        return Err(failed(what)(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    Ok(if inner.as_os_str().is_empty() {
        place.to_owned()
    } else {
        place.join(inner)
    })
}

fn attach(one: &RootMount, target: &Path) -> Result<(), Error> {
    let options = MountOptions::parse(&one.options);
    let flags = MsFlags::from_bits_retain(options.flags);
    let what = format!("{} {}", one.fstype, one.source.display());
    let is_bind = one.fstype == "bind" || flags.contains(MsFlags::MS_BIND);
    let attempt = || -> io::Result<()> {
        check(&options.data)?;
        if is_bind {
            return Ok(bind(&one.source, target, flags)?);
        }
        let data = shortened(options.data)?.join(",");
        if data.len() > MAX_OPTIONS {
            return Err(io::ErrorKind::ArgumentListTooLong.into());
        }
        let (source, kind) = (Some(one.source.as_path()), Some(one.fstype.as_str()));
        Ok(mount(source, target, kind, flags, Some(data.as_str()))?)
    };
    attempt().map_err(failed(what))
}

/// Options that are containerd's own and no file system's: layers whose owners
/// are other users on the host than in the container.
fn check(options: &[String]) -> io::Result<()> {
    let is_mapping =
        |option: &String| option.starts_with("uidmap=") || option.starts_with("gidmap=");
    match options.iter().find(|option| is_mapping(option)) {
        None => Ok(()),
        Some(option) => Err(io::Error::other(format!(
            "{option}: ID-mapped root file systems are not supported (a pod with hostUsers: false)"
        ))),
    }
}

/// The flags of a bind mount beside these two take a second call.
fn bind(source: &Path, target: &Path, flags: MsFlags) -> nix::Result<()> {
    let how = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(
        Some(source),
        target,
        NONE,
        flags & how | MsFlags::MS_BIND,
        NONE,
    )?;
    let rest = flags - how;
    if rest.is_empty() {
        return Ok(());
    }
    mount(
        NONE,
        target,
        NONE,
        rest | MsFlags::MS_BIND | MsFlags::MS_REMOUNT,
        NONE,
    )
}

/// Many layers have paths longer than the kernel takes. They have their
/// beginning in common, and are named from there.
fn shortened(options: Vec<String>) -> io::Result<Vec<String>> {
    const LAYERS: &str = "lowerdir=";
    let length: usize = options.iter().map(|option| option.len() + 1).sum();
    let layers = options
        .iter()
        .find_map(|option| option.strip_prefix(LAYERS));
    let Some(layers) = layers.filter(|_| length > MAX_OPTIONS) else {
        return Ok(options);
    };
    let Some(base) = common(layers.split(':').map(Path::new)) else {
        return Ok(options);
    };
    std::env::set_current_dir(&base)?;
    let relative = |layer: &str| {
        let rest = Path::new(layer).strip_prefix(&base).ok();
        rest.map_or(layer.to_owned(), |rest| rest.to_string_lossy().into_owned())
    };
    let layers: Vec<_> = layers.split(':').map(relative).collect();
    let named = format!("{LAYERS}{}", layers.join(":"));
    let others = options
        .into_iter()
        .map(|option| match option.starts_with(LAYERS) {
            true => named.clone(),
            false => option,
        });
    Ok(others.collect())
}

/// The deepest folder that all paths are below.
fn common<'a>(mut paths: impl Iterator<Item = &'a Path>) -> Option<PathBuf> {
    let first = paths.next()?.parent()?.to_owned();
    let common = paths.fold(first, |common, path| {
        let both = common.components().zip(path.components());
        both.take_while(|(one, other)| one == other)
            .map(|(one, _)| one)
            .collect()
    });
    let useful = common.as_os_str() != OsStr::from_bytes(b"/") && common.is_absolute();
    useful.then_some(common)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn targets_stay_inside() {
        let inside = |target: &str| inside("/b/rootfs".as_ref(), target.as_ref());
        assert_eq!(inside("").unwrap(), Path::new("/b/rootfs"));
        assert_eq!(inside("/").unwrap(), Path::new("/b/rootfs"));
        assert_eq!(inside("/data/x").unwrap(), Path::new("/b/rootfs/data/x"));
        assert!(inside("a/../../etc").is_err());
    }

    #[test]
    fn mapped_layers_are_refused_by_name() {
        let option = |text: &str| vec!["index=off".to_owned(), text.to_owned()];
        let error = check(&option("uidmap=0:200000:65536")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("uidmap=0:200000:65536: ID-mapped")
        );
        assert!(check(&option("gidmap=0:200000:65536")).is_err());
        assert!(check(&option("userxattr")).is_ok());
    }

    #[test]
    fn paths_have_a_beginning_in_common() {
        let common = |paths: &[&str]| common(paths.iter().map(Path::new));
        let layers = ["/var/lib/x/snapshots/12/fs", "/var/lib/x/snapshots/1/fs"];
        assert_eq!(common(&layers).unwrap(), Path::new("/var/lib/x/snapshots"));
        assert_eq!(common(&["/a/fs"]).unwrap(), Path::new("/a"));
        assert_eq!(common(&["/a/fs", "/b/fs"]), None);
        assert_eq!(common(&["l1", "l2"]), None);
    }

    /// In a thread of its own, with the rights that mounting takes.
    fn alone(test: impl FnOnce() + Send + 'static) {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return;
        }
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_FS).unwrap();
            test();
        });
        thread.join().unwrap();
    }

    fn read(tree: &OwnedFd, path: &str) -> io::Result<String> {
        use std::os::fd::AsFd;
        let within = detached::Within::Root;
        let file = detached::open_in(tree.as_fd(), path.as_ref(), within, 0, 0)?;
        io::read_to_string(fs::File::from(file))
    }

    #[test]
    fn many_layers_become_one_root() {
        alone(|| {
            let folder = tempfile::tempdir().unwrap();
            // On a tmpfs of its own: the test's may be an overlay itself.
            let long = folder.path().join("a-rather-long-name-of-a-snapshotter");
            fs::create_dir(&long).unwrap();
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE).unwrap();
            mount(NONE, &long, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            let place = folder.path().join("rootfs");
            fs::create_dir(&place).unwrap();
            let layers: Vec<_> = (0..90)
                .map(|n| long.join(format!("layer-{n}/fs")))
                .collect();
            for (n, layer) in layers.iter().enumerate() {
                fs::create_dir_all(layer).unwrap();
                fs::write(layer.join("last"), n.to_string()).unwrap();
                fs::write(layer.join(n.to_string()), "x").unwrap();
            }
            let named = |name: &str| {
                let path = long.join(name);
                fs::create_dir(&path).unwrap();
                path.to_string_lossy().into_owned()
            };
            let lower: Vec<_> = layers.iter().map(|layer| layer.to_string_lossy()).collect();
            let overlay = RootMount {
                fstype: "overlay".into(),
                source: "overlay".into(),
                options: vec![
                    format!("workdir={}", named("work")),
                    format!("upperdir={}", named("upper")),
                    format!("lowerdir={}", lower.join(":")),
                ],
                ..RootMount::default()
            };
            assert!(overlay.options.join(",").len() > MAX_OPTIONS);
            let tree = assemble(&[overlay], &place).unwrap();
            assert_eq!(read(&tree, "last").unwrap(), "0");
            assert_eq!(read(&tree, "89").unwrap(), "x");
        });
    }

    #[test]
    fn a_bound_folder_is_a_root_and_shows_nowhere_else() {
        alone(|| {
            let folder = tempfile::tempdir().unwrap();
            let (source, place) = (folder.path().join("s"), folder.path().join("p"));
            fs::create_dir(&source).unwrap();
            fs::create_dir(&place).unwrap();
            fs::write(source.join("word"), "here").unwrap();
            let bind = RootMount {
                fstype: "bind".into(),
                source,
                options: vec!["rbind".into(), "ro".into()],
                ..RootMount::default()
            };
            let (at, seen) = (place.clone(), place.clone());
            let tree = std::thread::spawn(move || {
                unshare(CloneFlags::CLONE_FS).unwrap();
                assemble(&[bind], &at).unwrap()
            });
            let tree = tree.join().unwrap();
            assert_eq!(read(&tree, "word").unwrap(), "here");
            assert!(!seen.join("word").exists());
        });
    }

    #[test]
    fn what_cannot_be_mounted_is_named() {
        alone(|| {
            let folder = tempfile::tempdir().unwrap();
            let missing = RootMount {
                fstype: "bind".into(),
                source: "/no/such/folder".into(),
                ..RootMount::default()
            };
            let error = assemble(&[missing], folder.path()).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("root file system: bind /no/such/folder: "),
                "{text}"
            );
        });
    }
}
