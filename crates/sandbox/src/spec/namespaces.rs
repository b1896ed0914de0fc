//! `linux.namespaces` and the ID mappings.
//!
//! A namespace that is not listed is the host's (runtime spec 1.2, "Linux
//! Namespaces"), which a virtual machine cannot share, so those that a
//! container would notice must be listed. Two differ: user and time namespaces
//! are optional, and a cgroup namespace is made whether or not it is listed:
//! without one, the container would see its place in the guest's tree, which
//! is not the place that the client named.
//!
//! The network namespace stays on the host, where the sandbox takes its
//! interfaces from. All containers of a sandbox share the guest's own one: who
//! joins the network of a container is in its sandbox.

use casemate_protocol::agent::{IdMapping, Namespace, namespace::Kind};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType};

use super::{Error, HostFacts, HostPath, JoinedNamespace, NetworkNamespace};
use crate::neighbours::process_in;

const FIELD: &str = "linux.namespaces";

/// Those that may not be the host's, in the order in which they are reported.
const REQUIRED: [LinuxNamespaceType; 5] = [
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Mount,
];

/// The namespaces of a container, split.
pub(super) struct Namespaces {
    pub(super) network: NetworkNamespace,
    pub(super) joined: Vec<JoinedNamespace>,
    pub(super) guest: Vec<Namespace>,
}

pub(super) fn split(linux: &Linux, facts: &dyn HostFacts) -> Result<Namespaces, Error> {
    let listed = linux.namespaces().as_deref().unwrap_or_default();
    check_list(listed)?;
    let mut split = Namespaces {
        network: NetworkNamespace::New,
        joined: Vec::new(),
        guest: Vec::new(),
    };
    for namespace in listed {
        let path = path_of(namespace)?;
        match guest_kind(namespace.typ()) {
            None => split.network = network(path, facts)?,
            Some(kind) => split.add(kind, namespace.typ(), path, facts)?,
        }
    }
    if find(listed, LinuxNamespaceType::Cgroup).is_none() {
        split.guest.push(new_namespace(Kind::CGROUP));
    }
    Ok(split)
}

impl Namespaces {
    fn add(
        &mut self,
        kind: Kind,
        named: LinuxNamespaceType,
        path: Option<HostPath>,
        facts: &dyn HostFacts,
    ) -> Result<(), Error> {
        let mut namespace = new_namespace(kind);
        if let Some(path) = path {
            let joined = join(named, path, facts)?;
            namespace.of_container.clone_from(&joined.container_id);
            self.joined.push(joined);
        }
        self.guest.push(namespace);
        Ok(())
    }
}

fn check_list(listed: &[LinuxNamespace]) -> Result<(), Error> {
    for kind in REQUIRED {
        if find(listed, kind).is_none() {
            return Err(Error::HostNamespace { kind: name(kind) });
        }
    }
    for (n, namespace) in listed.iter().enumerate() {
        if find(&listed[..n], namespace.typ()).is_some() {
            let kind = name(namespace.typ());
            return Err(Error::invalid(FIELD, kind, "is listed twice"));
        }
    }
    Ok(())
}

fn find(listed: &[LinuxNamespace], kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    listed.iter().find(|namespace| namespace.typ() == kind)
}

fn path_of(namespace: &LinuxNamespace) -> Result<Option<HostPath>, Error> {
    match namespace.path() {
        Some(path) if !path.as_os_str().is_empty() => match HostPath::new(path) {
            Some(path) => Ok(Some(path)),
            None => Err(Error::invalid(FIELD, path.display(), "is not absolute")),
        },
        _ => Ok(None),
    }
}

/// The network namespace that is named, or a new one.
pub(super) fn network(
    path: Option<HostPath>,
    facts: &dyn HostFacts,
) -> Result<NetworkNamespace, Error> {
    let Some(path) = path else {
        return Ok(NetworkNamespace::New);
    };
    match facts.is_host_network(&path) {
        // Docker asks for the host's network by a path to it.
        Ok(true) => Err(Error::HostNamespace { kind: "network" }),
        Ok(false) => match facts.container_of(LinuxNamespaceType::Network, &path) {
            Some(container_id) => Ok(NetworkNamespace::Of(JoinedNamespace {
                kind: name(LinuxNamespaceType::Network).to_owned(),
                path,
                container_id,
            })),
            None => nobody_elses(path).map(NetworkNamespace::Path),
        },
        Err(source) => Err(Error::Path {
            field: FIELD.to_owned(),
            path,
            source,
        }),
    }
}

/// A namespace that is named by a process has that process in it, and would be
/// taken away from it.
fn nobody_elses(path: HostPath) -> Result<HostPath, Error> {
    match process_in(path.as_path(), LinuxNamespaceType::Network) {
        None => Ok(path),
        Some(pid) => {
            let reason = format!(
                "{path}: process {pid} is no running container of Casemate; a virtual machine \
                 cannot share its network"
            );
            Err(Error::unsupported(FIELD, reason))
        }
    }
}

fn join(
    kind: LinuxNamespaceType,
    path: HostPath,
    facts: &dyn HostFacts,
) -> Result<JoinedNamespace, Error> {
    if kind == LinuxNamespaceType::Mount {
        let reason = format!("{path}: a container in a virtual machine has its own mounts");
        return Err(Error::unsupported(FIELD, reason));
    }
    let Some(container_id) = facts.container_of(kind, &path) else {
        let reason = format!("{path}: not a namespace of a running container of Casemate");
        return Err(Error::unsupported(FIELD, reason));
    };
    Ok(JoinedNamespace {
        kind: name(kind).to_owned(),
        path,
        container_id,
    })
}

/// One of the container's own.
pub(super) fn new_namespace(kind: Kind) -> Namespace {
    Namespace {
        kind: kind.into(),
        ..Namespace::default()
    }
}

/// The kind that the guest makes, or nothing for one that stays on the host.
fn guest_kind(kind: LinuxNamespaceType) -> Option<Kind> {
    match kind {
        LinuxNamespaceType::Mount => Some(Kind::MOUNT),
        LinuxNamespaceType::Cgroup => Some(Kind::CGROUP),
        LinuxNamespaceType::Uts => Some(Kind::UTS),
        LinuxNamespaceType::Ipc => Some(Kind::IPC),
        LinuxNamespaceType::User => Some(Kind::USER),
        LinuxNamespaceType::Pid => Some(Kind::PID),
        LinuxNamespaceType::Time => Some(Kind::TIME),
        LinuxNamespaceType::Network => None,
    }
}

/// As config.json names it.
fn name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

/// The ID mappings of a user namespace, users first.
pub(super) struct IdMappings {
    pub(super) uid: Vec<IdMapping>,
    pub(super) gid: Vec<IdMapping>,
}

/// The mappings are the same in the guest as they would be on the host: the
/// shared root file system carries the host's numbers.
pub(super) fn id_mappings(
    linux: &Linux,
    guest: &[Namespace],
    warnings: &mut Vec<String>,
) -> Result<IdMappings, Error> {
    let mappings = IdMappings {
        uid: mapping("linux.uidMappings", linux.uid_mappings())?,
        gid: mapping("linux.gidMappings", linux.gid_mappings())?,
    };
    let given = !mappings.uid.is_empty() || !mappings.gid.is_empty();
    let user = guest
        .iter()
        .find(|namespace| namespace.kind == Kind::USER.into());
    match user {
        None if given => Err(Error::unsupported(
            "linux.uidMappings",
            "mappings without a user namespace",
        )),
        Some(user) if !user.of_container.is_empty() && given => {
            // containerd and CRI-O send both.
            warnings.push("linux.uidMappings: those of the joined user namespace hold".to_owned());
            Ok(IdMappings {
                uid: Vec::new(),
                gid: Vec::new(),
            })
        }
        Some(user) if user.of_container.is_empty() && mappings.uid.is_empty() => {
            Err(Error::missing("linux.uidMappings"))
        }
        Some(user) if user.of_container.is_empty() && mappings.gid.is_empty() => {
            Err(Error::missing("linux.gidMappings"))
        }
        _ => Ok(mappings),
    }
}

fn mapping(field: &str, ranges: &Option<Vec<LinuxIdMapping>>) -> Result<Vec<IdMapping>, Error> {
    let mut mapping = Vec::new();
    for range in ranges.iter().flatten() {
        if range.size() == 0 {
            return Err(Error::invalid(field, 0, "is not a size of a range"));
        }
        mapping.push(IdMapping {
            container_id: range.container_id(),
            host_id: range.host_id(),
            size: range.size(),
            ..IdMapping::default()
        });
    }
    Ok(mapping)
}

/// The number outside a user namespace of `id` inside it.
pub(super) fn mapped(mapping: &[IdMapping], id: u32) -> Option<u32> {
    if mapping.is_empty() {
        return Some(id);
    }
    mapping.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id)?;
        (offset < range.size).then(|| range.host_id.checked_add(offset))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_by_the_range_that_holds_them() {
        let range = |container_id, host_id, size| IdMapping {
            container_id,
            host_id,
            size,
            ..IdMapping::default()
        };
        let mapping = [
            range(0, 1000, 1),
            range(1, 100_000, 10),
            range(20, u32::MAX, 2),
        ];
        assert_eq!(mapped(&mapping, 0), Some(1000));
        assert_eq!(mapped(&mapping, 10), Some(100_009));
        assert_eq!(mapped(&mapping, 11), None);
        assert_eq!(mapped(&mapping, 21), None, "no number is that large");
        assert_eq!(mapped(&[], 7), Some(7));
    }
}
