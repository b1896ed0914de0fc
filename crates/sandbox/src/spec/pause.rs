//! A pod's sandbox container, which the agent plays: there is no program, so
//! nothing is wanted of the host but the network and the cgroup.
//!
//! Clients name an image with a program that waits, and mount into it what that
//! program does not read. Neither is used. What stays is what the members of
//! the pod find again: namespaces with their names and parameters, the memory
//! that they share, limits.

use std::collections::{BTreeMap, HashMap};

use casemate_protocol::agent::{self, IdMapping, namespace::Kind};
use oci_spec::runtime::{Hooks, LinuxResources};

use super::{
    Error, GuestSpec, HostFacts, HostPath, HostSpec, Split, namespaces, pod_limits, sysctl,
};

/// What the agent's process is shown as.
const COMMAND: &str = "/pause";

/// Where POSIX shared memory is (shm_overview(7)).
const SHARED_MEMORY: &str = "/dev/shm";

/// What the memory of a [`pause`] is called; that of others has the name of a
/// folder of the host.
const POD: &str = "pod";

/// Programs that wait and do nothing else, by their file names: of Kubernetes
/// and of Podman.
const KNOWN_PROGRAMS: [&str; 2] = ["pause", "catatonit"];

/// A sandbox container without a config.json.
#[derive(Clone, Debug)]
pub struct Pause<'a> {
    /// Its id.
    pub container_id: &'a str,
    /// Host name of the pod; empty: the guest's.
    pub hostname: &'a str,
    /// The network namespace that the client made; without one, a new one.
    pub network: Option<HostPath>,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: &'a HashMap<String, String>,
    /// As in [`HostSpec::cgroups_path`].
    pub cgroups_path: Option<String>,
    /// As in [`HostSpec::pod`].
    pub pod: Option<LinuxResources>,
    /// As in [`HostSpec::annotations`].
    pub annotations: BTreeMap<String, String>,
    /// Its user and groups.
    pub process: agent::Process,
    /// Users of the pod's user namespace; without them it has none.
    pub uid_mappings: Vec<IdMapping>,
    /// Groups of the same.
    pub gid_mappings: Vec<IdMapping>,
}

/// What host and guest do for a sandbox container that has no config.json, or
/// why it cannot be.
pub fn pause(wish: Pause<'_>, facts: &dyn HostFacts) -> Result<Split, Error> {
    let mut kinds = vec![Kind::PID, Kind::MOUNT, Kind::IPC, Kind::UTS, Kind::CGROUP];
    if !wish.uid_mappings.is_empty() || !wish.gid_mappings.is_empty() {
        kinds.push(Kind::USER);
    }
    let guest = GuestSpec {
        process: Some(wish.process).into(),
        mounts: vec![memory()],
        namespaces: kinds.into_iter().map(namespaces::new_namespace).collect(),
        uid_mappings: wish.uid_mappings,
        gid_mappings: wish.gid_mappings,
        hostname: wish.hostname.to_owned(),
        sysctls: sysctl::parameters(wish.sysctls)?,
        cgroup: Some(agent::Cgroup {
            path: super::cgroup_in_guest(wish.container_id),
            ..agent::Cgroup::default()
        })
        .into(),
        ..GuestSpec::default()
    };
    let host = HostSpec {
        rootfs: None,
        readonly_rootfs: false,
        shares: Vec::new(),
        resolver: None,
        network: namespaces::network(wish.network, facts)?,
        joined: Vec::new(),
        cgroups_path: wish.cgroups_path,
        resources: wish.pod.as_ref().map(pod_limits::on_the_host),
        pod: wish.pod,
        hooks: Hooks::default(),
        annotations: wish.annotations,
        hostname: (!wish.hostname.is_empty()).then(|| wish.hostname.to_owned()),
        command: vec![COMMAND.to_owned()],
        terminal: false,
        warnings: Vec::new(),
    };
    Ok(Split {
        host,
        guest: of_agent(guest),
    })
}

/// The shared memory of the pod, as containerd makes it for others.
fn memory() -> agent::Mount {
    agent::Mount {
        destination: SHARED_MEMORY.to_owned(),
        fstype: "tmpfs".to_owned(),
        source: "shm".to_owned(),
        flags: libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
        data: "mode=1777,size=65536k".to_owned(),
        shared: POD.to_owned(),
        ..agent::Mount::default()
    }
}

/// Gives a container that joins the IPC namespace of a [`pause`] its shared
/// memory too, in place of a new one. (What a client binds there stays.)
pub(crate) fn share_memory(guest: &mut GuestSpec, sandbox: &str) {
    let joins = guest
        .namespaces
        .iter()
        .any(|namespace| namespace.kind == Kind::IPC.into() && namespace.of_container == sandbox);
    let own = guest.mounts.iter_mut().filter(|mount| {
        mount.destination == SHARED_MEMORY && mount.fstype == "tmpfs" && mount.shared.is_empty()
    });
    for mount in own.filter(|_| joins) {
        mount.shared = POD.to_owned();
    }
}

/// Takes away what a sandbox container does not need, or refuses what it cannot
/// do.
pub(super) fn reduce(split: Split) -> Result<Split, Error> {
    const WHY: &str = "a pod's sandbox container has no program";
    let Split { mut host, guest } = split;
    if host.terminal {
        return Err(Error::unsupported("process.terminal", WHY));
    }
    if !guest.start_hooks.is_empty() {
        return Err(Error::unsupported("hooks.startContainer", WHY));
    }
    if !is_known(&host.command) {
        let command = &host.command;
        let warning = format!("process.args: {command:?} is not executed: {WHY} of its own");
        host.warnings.push(warning);
    }
    host.readonly_rootfs = false;
    host.shares.clear();
    Ok(Split {
        host,
        guest: of_agent(guest),
    })
}

fn is_known(command: &[String]) -> bool {
    let program = command.first().map(std::path::Path::new);
    let name = program.and_then(|program| program.file_name()?.to_str());
    name.is_some_and(|name| KNOWN_PROGRAMS.contains(&name))
}

/// The part of a specification that means something for the agent's process.
fn of_agent(guest: GuestSpec) -> GuestSpec {
    let process = guest.process.unwrap_or_default();
    let mut mounts = guest.mounts;
    mounts.retain(|mount| !mount.shared.is_empty());
    let cgroup = guest.cgroup.unwrap_or_default();
    GuestSpec {
        pause: true,
        process: Some(agent::Process {
            uid: process.uid,
            gid: process.gid,
            additional_gids: process.additional_gids,
            rlimits: process.rlimits,
            oom_score_adj: process.oom_score_adj,
            scheduler: process.scheduler,
            io_priority: process.io_priority,
            ..agent::Process::default()
        })
        .into(),
        mounts,
        namespaces: guest.namespaces,
        uid_mappings: guest.uid_mappings,
        gid_mappings: guest.gid_mappings,
        hostname: guest.hostname,
        domainname: guest.domainname,
        sysctls: guest.sysctls,
        cgroup: Some(agent::Cgroup {
            // It opens no device.
            device_rules: Vec::new(),
            ..cgroup
        })
        .into(),
        ..GuestSpec::default()
    }
}
