//! The containers with which a new one can share namespaces, and in whose
//! sandbox it will therefore be.
//!
//! A client names a namespace by a path: `/proc/<pid>/ns/…` of the container's
//! process, which is our stand-in. A stand-in is in the network namespace of
//! its sandbox, so that one is recognized under every other path as well; the
//! others are in the guest, and the stand-in's own only stand for them.

use std::{cell::OnceCell, fs, os::linux::fs::MetadataExt, path::Path, path::PathBuf};

use oci_spec::runtime::LinuxNamespaceType;

use crate::{
    layout,
    spec::{HostSpec, NetworkNamespace},
    state::{State, Status},
};

/// A container whose namespaces can be joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its id.
    pub id: String,
    /// Process id of its stand-in.
    pub pid: u32,
    /// Directory of its sandbox.
    pub sandbox: PathBuf,
}

/// All of them, which are looked for when they are needed.
#[derive(Debug, Default)]
pub struct Neighbours {
    root: PathBuf,
    found: OnceCell<Vec<Neighbour>>,
}

/// Why a container cannot be where its namespaces are.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All containers of a virtual machine have its network.
    #[error(
        "linux.namespaces: to share the {kind} namespace of container {container:?} is to be in its \
         virtual machine, which has one network: share that as well (--network container:{container})"
    )]
    OtherNetwork {
        /// What is to be shared.
        kind: String,
        /// With whom.
        container: String,
    },
    /// Namespaces from more than one machine.
    #[error(
        "linux.namespaces: containers {one:?} and {other:?} are in different virtual machines; \
         only namespaces of one can be joined"
    )]
    Apart {
        /// Has one of them.
        one: String,
        /// Has another.
        other: String,
    },
}

impl Neighbours {
    /// The running containers under a state root.
    pub fn under(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            found: OnceCell::new(),
        }
    }

    /// Exactly these.
    pub fn known(containers: Vec<Neighbour>) -> Self {
        Self {
            root: PathBuf::new(),
            found: OnceCell::from(containers),
        }
    }

    fn all(&self) -> &[Neighbour] {
        self.found.get_or_init(|| running_under(&self.root))
    }

    /// The one to which the namespace at `path` belongs.
    pub fn of_namespace(&self, kind: LinuxNamespaceType, path: &Path) -> Option<&Neighbour> {
        let named = process_in(path, kind);
        let by_pid = |pid| self.all().iter().find(|neighbour| neighbour.pid == pid);
        named.and_then(by_pid).or_else(|| {
            let network = kind == LinuxNamespaceType::Network;
            let asked = identity(path).filter(|_| network)?;
            self.all().iter().find(|neighbour| {
                let own = format!("/proc/{}/ns/net", neighbour.pid);
                identity(own.as_ref()) == Some(asked)
            })
        })
    }

    /// The one whose sandbox the container has to be in; none for a container
    /// that makes its own.
    ///
    /// # Errors
    /// When there is no such sandbox.
    pub fn home(&self, host: &HostSpec) -> Result<Option<&Neighbour>, Error> {
        let joined = host.joined.first();
        let NetworkNamespace::Of(network) = &host.network else {
            return match joined {
                None => Ok(None),
                Some(joined) => Err(Error::OtherNetwork {
                    kind: joined.kind.clone(),
                    container: joined.container_id.clone(),
                }),
            };
        };
        let find = |id: &str| self.all().iter().find(|neighbour| neighbour.id == id);
        let home = find(&network.container_id);
        for joined in &host.joined {
            let sandbox = |neighbour: Option<&Neighbour>| neighbour.map(|n| n.sandbox.clone());
            if sandbox(find(&joined.container_id)) != sandbox(home) {
                return Err(Error::Apart {
                    one: network.container_id.clone(),
                    other: joined.container_id.clone(),
                });
            }
        }
        Ok(home)
    }
}

/// The process whose namespace the path names: `/proc/<pid>/ns/<kind>`.
pub(crate) fn process_in(path: &Path, kind: LinuxNamespaceType) -> Option<u32> {
    let text = path.to_str()?.strip_prefix("/proc/")?;
    let (pid, namespace) = text.split_once("/ns/")?;
    (namespace == file_name(kind)).then_some(())?;
    pid.parse().ok()
}

/// As proc(5) names it.
fn file_name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

/// Which namespace is at a path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.st_dev(), metadata.st_ino()))
}

fn running_under(root: &Path) -> Vec<Neighbour> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let containers = entries.filter_map(|entry| {
        let directory = entry.path();
        let sandbox = layout::sandbox_of(&directory)?;
        let state = State::load(&directory).ok()?;
        let runs = matches!(
            state.status,
            Status::Created | Status::Running | Status::Paused
        );
        runs.then_some(Neighbour {
            id: state.id,
            pid: state.pid,
            sandbox,
        })
    });
    containers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{HostPath, JoinedNamespace};

    fn neighbours() -> Neighbours {
        let neighbour = |id: &str, pid, sandbox: &str| Neighbour {
            id: id.into(),
            pid,
            sandbox: sandbox.into(),
        };
        Neighbours::known(vec![
            neighbour("web", std::process::id(), "/r/.sandbox-1"),
            neighbour("side", u32::MAX, "/r/.sandbox-1"),
            neighbour("other", u32::MAX - 1, "/r/.sandbox-2"),
        ])
    }

    fn of(kind: LinuxNamespaceType, path: &str) -> Option<String> {
        let found = neighbours();
        let found = found.of_namespace(kind, path.as_ref());
        found.map(|neighbour| neighbour.id.clone())
    }

    #[test]
    fn a_namespace_is_known_by_the_process_in_its_path() {
        use LinuxNamespaceType::{Ipc, Pid, User};
        let side = u32::MAX;
        assert_eq!(of(Ipc, &format!("/proc/{side}/ns/ipc")).unwrap(), "side");
        assert_eq!(of(User, &format!("/proc/{side}/ns/user")).unwrap(), "side");
        for path in ["/proc/1/ns/ipc", "/proc/x/ns/ipc", "/run/ipcns/x", "/"] {
            assert_eq!(of(Ipc, path), None, "{path}");
        }
        assert_eq!(of(Pid, &format!("/proc/{side}/ns/ipc")), None);
        // All processes of this host share these.
        assert_eq!(of(Ipc, "/proc/self/ns/ipc"), None);
    }

    #[test]
    fn a_network_is_known_by_any_path() {
        let network = LinuxNamespaceType::Network;
        assert_eq!(of(network, "/proc/thread-self/ns/net").unwrap(), "web");
        assert_eq!(of(network, "/proc/self/ns/ipc"), None);
        assert_eq!(of(network, "/no/such/path"), None);
    }

    /// The container whose sandbox is chosen, or why there is none.
    fn home(network: Option<&str>, joined: &[&str]) -> Result<Option<String>, String> {
        let of = |kind: &str, id: &str| JoinedNamespace {
            kind: kind.into(),
            path: HostPath::new("/proc/7/ns/x").unwrap(),
            container_id: id.into(),
        };
        let host = HostSpec {
            network: match network {
                Some(id) => NetworkNamespace::Of(of("network", id)),
                None => NetworkNamespace::New,
            },
            joined: joined.iter().map(|id| of("ipc", id)).collect(),
            ..HostSpec::fake()
        };
        let found = neighbours();
        let found = found.home(&host).map_err(|error| error.to_string())?;
        Ok(found.map(|neighbour| neighbour.id.clone()))
    }

    #[test]
    fn a_container_is_where_its_namespaces_are() {
        assert_eq!(home(None, &[]), Ok(None));
        assert_eq!(home(Some("web"), &[]), Ok(Some("web".into())));
        assert_eq!(home(Some("web"), &["side", "web"]), Ok(Some("web".into())));
        let alone = home(None, &["web"]).unwrap_err();
        assert!(alone.contains("--network container:web"), "{alone}");
        let apart = home(Some("web"), &["web", "other"]).unwrap_err();
        assert!(apart.contains("\"web\" and \"other\""), "{apart}");
    }

    #[test]
    fn only_what_runs_is_found() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("web");
        fs::create_dir(&directory).unwrap();
        let sandbox = layout::make_sandbox(&directory).unwrap();
        let lock = crate::state::Lock::acquire(&sandbox).unwrap();
        let store = |status| {
            let state = State::fake().with_status(status);
            state.store(&directory).unwrap();
        };
        store(Status::Running);
        let found = running_under(root.path());
        assert_eq!((found.len(), &found[0].sandbox), (1, &sandbox));
        assert_eq!((found[0].id.as_str(), found[0].pid), ("web", 42));
        for status in [Status::Creating, Status::Stopped] {
            store(status);
            assert_eq!(running_under(root.path()), [], "{status}");
        }
        store(Status::Running);
        drop(lock);
        assert_eq!(running_under(root.path()), []);
    }
}
