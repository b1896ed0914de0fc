//! `config.json` (OCI runtime spec) split once into what the host does and
//! what the guest does.
//!
//! Everything that a container's configuration asks for is decided here and
//! nowhere else: it becomes part of the [`HostSpec`], part of the
//! [`GuestSpec`], a warning, or a refusal before anything is touched. Nothing
//! is read and ignored.
//!
//! The split is pure. What it needs to know of the host (what kind of thing a
//! mount's source is, which container a namespace belongs to) is asked of
//! [`HostFacts`], so tests need no file system.

mod error;
mod facts;
mod path;

use std::collections::BTreeMap;

use oci_spec::runtime::{Hooks, LinuxResources, Spec};
use serde::{Deserialize, Serialize};

pub use casemate_protocol::agent::ContainerSpec as GuestSpec;
pub use error::Error;
pub use facts::{HostFacts, LiveHost, Resolved, Source};
pub use path::{GuestPath, HostPath};

/// Where a container's configuration comes from.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    /// Id of the container.
    pub container_id: &'a str,
    /// The folder of config.json; relative host paths start here.
    pub directory: &'a HostPath,
}

/// A configuration, split.
#[derive(Clone, Debug)]
pub struct Split {
    /// What the host does.
    pub host: HostSpec,
    /// What the guest does. Its `streams` are left at their default: which
    /// streams are wanted is known to the caller, not to config.json.
    pub guest: GuestSpec,
}

/// The host's part of a container's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostSpec {
    /// The root file system: an existing folder without symbolic links in its
    /// path, to be shared as `paths::rootfs_slot`.
    pub rootfs: HostPath,
    /// The container may not write to its root file system.
    pub readonly_rootfs: bool,
    /// Host folders and files to be shared with the guest beside the rootfs.
    pub shares: Vec<Share>,
    /// The sandbox's network namespace.
    pub network: NetworkNamespace,
    /// Namespaces of other containers that this one joins.
    pub joined: Vec<JoinedNamespace>,
    /// Where the stand-in belongs, as the client wrote it: a path for the fs
    /// driver, `slice:prefix:name` for the systemd driver.
    pub cgroups_path: Option<String>,
    /// Limits of the pod's processes on the host. The limits inside the guest
    /// are in [`GuestSpec`] already.
    pub resources: Option<LinuxResources>,
    /// All six lists of hooks; each path is absolute.
    pub hooks: Hooks,
    /// As the client wrote them.
    pub annotations: BTreeMap<String, String>,
    /// Host name of the container.
    pub hostname: Option<String>,
    /// The container's process wants a terminal.
    pub terminal: bool,
    /// What was asked for and has no effect in a virtual machine, each with its
    /// reason in one line.
    pub warnings: Vec<String>,
}

/// A host folder or file that the guest must see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Without symbolic links.
    pub source: HostPath,
    /// Path under the sandbox's share, from `paths::volume_slot`.
    pub slot: String,
    /// The guest may not write, whatever it does.
    pub readonly: bool,
    /// Mounts below the source are shared as well (rbind).
    pub recursive: bool,
    /// The source is a file, not a folder.
    pub is_file: bool,
}

/// The network namespace in which the sandbox finds its interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkNamespace {
    /// The runtime makes one.
    New,
    /// The client made one.
    Path(HostPath),
}

/// A namespace of another container of the same sandbox that is joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedNamespace {
    /// As config.json names it: "pid", "ipc", "uts" …
    pub kind: String,
    /// As config.json has it.
    pub path: HostPath,
    /// The container it belongs to, from [`HostFacts::container_of`].
    pub container_id: String,
}

/// Splits `spec`, or says why the container cannot be run.
pub fn split(_spec: &Spec, _bundle: Bundle<'_>, _facts: &dyn HostFacts) -> Result<Split, Error> {
    unimplemented!("first the types")
}
