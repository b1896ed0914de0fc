//! The host's part of a container's configuration.

use std::collections::BTreeMap;

use casemate_protocol::agent;
use oci_spec::runtime::{Hook, Hooks, LinuxMemory, LinuxResources, Spec};
use serde::{Deserialize, Serialize};

use super::{Error, HostPath};

/// What the host does for a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// The root file system: an existing folder without symbolic links in its
    /// path, to be shared as `paths::rootfs_slot`. A pod's sandbox container
    /// has none.
    pub rootfs: Option<HostPath>,
    /// The container may not write to its root file system. The guest makes it
    /// read-only after it has made the mount points that are missing in it.
    pub readonly_rootfs: bool,
    /// Host folders and files to be shared with the guest beside the rootfs.
    pub shares: Vec<Share>,
    /// The file that the client has bound to /etc/resolv.conf.
    pub resolver: Option<HostPath>,
    /// The sandbox's network namespace.
    pub network: NetworkNamespace,
    /// Namespaces of other containers that this one joins.
    pub joined: Vec<JoinedNamespace>,
    /// Where the stand-in belongs, as the client wrote it: a path for the fs
    /// driver, `slice:prefix:name` for the systemd driver.
    pub cgroups_path: Option<String>,
    /// Limits of the sandbox's processes on the host, those that name the
    /// host's processors and disks among them. The limits inside the guest are
    /// in the guest's part already.
    pub resources: Option<LinuxResources>,
    /// The limits of the whole pod, when this is the first container of one in
    /// Kubernetes; `resources` is made of them then.
    pub pod: Option<LinuxResources>,
    /// The hooks that run on the host; each path is absolute. createContainer
    /// and startContainer are empty: the first is refused, the second is in the
    /// guest's part.
    pub hooks: Hooks,
    /// As the client wrote them.
    pub annotations: BTreeMap<String, String>,
    /// Host name of the container.
    pub hostname: Option<String>,
    /// Arguments of the container's process, for who lists the host's.
    pub command: Vec<String>,
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
    /// The same holds for mounts below the source (`rro`; `ro` alone leaves
    /// these as they are).
    pub readonly_below: bool,
    /// Mounts below the source are shared as well (`rbind`).
    pub recursive: bool,
    /// What the host mounts below the source later is shared as well (`slave`,
    /// `shared`).
    pub follows: bool,
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
    /// It is that of another container's sandbox, in which this one will be.
    Of(JoinedNamespace),
}

/// A namespace of another container that is joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedNamespace {
    /// As config.json names it: "pid", "ipc", "network" …
    pub kind: String,
    /// As config.json has it.
    pub path: HostPath,
    /// The container it belongs to, from [`super::HostFacts::container_of`].
    pub container_id: String,
}

impl HostSpec {
    /// The limits for which a machine is sized that this container is the first
    /// of.
    pub fn sizing(&self) -> Option<&LinuxResources> {
        self.pod.as_ref().or(self.resources.as_ref())
    }

    /// The container's own memory limit in bytes, 0 without one.
    pub(crate) fn memory_limit(&self) -> u64 {
        match (&self.pod, &self.resources) {
            (None, Some(resources)) => {
                let limit = resources.memory().as_ref().and_then(LinuxMemory::limit);
                limit
                    .and_then(|limit| u64::try_from(limit).ok())
                    .unwrap_or(0)
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
impl HostSpec {
    /// One that asks for nothing.
    pub(crate) fn fake() -> Self {
        let path = |text| HostPath::new(text).expect("absolute");
        Self {
            rootfs: Some(path("/b/rootfs")),
            readonly_rootfs: false,
            shares: Vec::new(),
            resolver: None,
            network: NetworkNamespace::New,
            joined: Vec::new(),
            cgroups_path: None,
            resources: None,
            pod: None,
            hooks: Hooks::default(),
            annotations: BTreeMap::new(),
            hostname: None,
            command: Vec::new(),
            terminal: false,
            warnings: Vec::new(),
        }
    }
}

/// How long a hook in the guest may take that sets no limit itself, in seconds.
const HOOK_TIMEOUT_S: u32 = 30;

/// The hooks that run on the host, each of which must be absolute (runtime
/// spec, "POSIX-platform Hooks").
pub(super) fn hooks(spec: &Spec) -> Result<Hooks, Error> {
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let lists = [
        ("hooks.prestart", hooks.prestart()),
        ("hooks.createRuntime", hooks.create_runtime()),
        ("hooks.startContainer", hooks.start_container()),
        ("hooks.poststart", hooks.poststart()),
        ("hooks.poststop", hooks.poststop()),
    ];
    for (field, list) in lists {
        for hook in list.iter().flatten() {
            check_hook(field, hook)?;
        }
    }
    let create_container = hooks.create_container().as_ref();
    if create_container.is_some_and(|list| !list.is_empty()) {
        let reason = "its programs are on the host, its namespaces in a virtual machine; \
                      use createRuntime (host) or startContainer (guest)";
        return Err(Error::unsupported("hooks.createContainer", reason));
    }
    hooks.set_start_container(None);
    Ok(hooks)
}

/// The hooks that run in the container, whose programs are found there.
pub(super) fn guest_hooks(spec: &Spec) -> Vec<agent::Hook> {
    let hooks = spec.hooks().as_ref();
    let list = hooks.and_then(|hooks| hooks.start_container().as_ref());
    let seconds = |hook: &Hook| match hook.timeout() {
        Some(seconds) => u32::try_from(seconds).unwrap_or(u32::MAX),
        None => HOOK_TIMEOUT_S,
    };
    let guest = list.into_iter().flatten().map(|hook| agent::Hook {
        path: hook.path().to_string_lossy().into_owned(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout_s: seconds(hook),
        ..Default::default()
    });
    guest.collect()
}

fn check_hook(field: &str, hook: &Hook) -> Result<(), Error> {
    if !hook.path().is_absolute() {
        return Err(Error::invalid(
            field,
            hook.path().display(),
            "is not absolute",
        ));
    }
    match hook.timeout() {
        Some(timeout) if timeout <= 0 => Err(Error::invalid(
            field,
            timeout,
            "is no timeout above 0 seconds",
        )),
        _ => Ok(()),
    }
}
