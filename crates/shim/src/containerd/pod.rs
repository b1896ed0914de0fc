//! A pod as containerd's Sandbox API describes it: what the kubelet said to
//! containerd, the network namespace that containerd has made, and the bundle,
//! in which there is nothing.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use casemate_protocol::agent::{self, IdMapping};
use casemate_sandbox::{
    Id,
    pod_files::Contents,
    spec::{self, Error, HostFacts, HostPath, NetworkNamespace, Pause, PodLimits, Split},
};
use containerd_shim_protos::{protobuf::Message, sandbox_api::CreateSandboxRequest};

use messages::{
    DNSConfig, IDMapping, LinuxContainerResources, LinuxSandboxSecurityContext, NamespaceMode,
    PodSandboxConfig,
};

#[cfg(test)]
mod tests;

/// The interface's messages, from `proto/cri.proto`.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    reason = "generated"
)]
mod messages {
    mod generated {
        include!(concat!(env!("OUT_DIR"), "/cri/mod.rs"));
    }
    pub(super) use generated::cri::*;
}

/// The type of the options that the CRI plugin sends.
const CONFIG: &str = "runtime.v1.PodSandboxConfig";

/// By which annotations containerd marks a pod for other runtimes.
const TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// The host's files of which a pod gets a copy.
const HOSTS: &str = "/etc/hosts";
const RESOLVER: &str = "/etc/resolv.conf";

/// What a pod is made from.
#[derive(Debug)]
pub struct Pod {
    /// Its bundle.
    pub bundle: PathBuf,
    /// The network namespace that was made for it.
    pub netns: Option<PathBuf>,
    /// What host and guest do.
    pub split: Split,
    /// What its containers find in /etc.
    pub files: Contents,
}

/// A request that is no pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("options of the sandbox: type {0:?} is unknown; {CONFIG} is meant")]
    Options(String),
    #[error("options of the sandbox: {0}")]
    Config(containerd_shim_protos::protobuf::Error),
    #[error("{0}: {1:?} is not absolute")]
    Path(&'static str, String),
    #[error("a sandbox has no root file system, and one is given")]
    Root,
    #[error("{0}")]
    Spec(#[from] Error),
}

impl Pod {
    /// Reads a request, or says why the pod cannot be.
    pub(crate) fn new(
        id: &Id,
        request: &CreateSandboxRequest,
        facts: &dyn HostFacts,
    ) -> Result<Self, Invalid> {
        if !request.rootfs.is_empty() {
            return Err(Invalid::Root);
        }
        let config = config(request)?;
        let options = config.as_ref().cloned().unwrap_or_default();
        let linux = options.linux.unwrap_or_default();
        let security = linux.security_context.unwrap_or_default();
        check_namespaces(&security)?;
        let mut annotations: BTreeMap<_, _> = options.annotations.into_iter().collect();
        annotations.extend(request.annotations.clone());
        annotations.extend(marks(id));
        let mapping = security.namespace_options.userns_options.clone();
        let mapping = mapping.into_option().unwrap_or_default();
        let network = match request.netns_path.as_str() {
            "" => None,
            path => {
                let absolute = HostPath::new(path);
                Some(absolute.ok_or_else(|| Invalid::Path("netns_path", path.to_owned()))?)
            }
        };
        let netns = network.as_ref().map(|path| path.as_path().to_owned());
        let sysctls: HashMap<_, _> = linux.sysctls;
        let split = spec::pause(
            Pause {
                container_id: id.as_str(),
                hostname: &options.hostname,
                network,
                sysctls: &sysctls,
                cgroups_path: cgroups_path(&linux.cgroup_parent, id),
                pod: linux
                    .resources
                    .as_ref()
                    .map(|limits| limits_of(limits).resources()),
                annotations,
                process: process(&security)?,
                uid_mappings: mapping.uids.iter().map(id_mapping).collect(),
                gid_mappings: mapping.gids.iter().map(id_mapping).collect(),
            },
            facts,
        )?;
        if let NetworkNamespace::Of(other) = &split.host.network {
            return Err(unsupported(format!(
                "{}: is the network of container {:?} already",
                other.path, other.container_id
            )));
        }
        Ok(Self {
            bundle: PathBuf::from(&request.bundle_path),
            netns,
            split,
            files: match config {
                Some(_) => contents(&options.hostname, options.dns_config.as_ref()),
                None => Contents::default(),
            },
        })
    }
}

fn unsupported(reason: String) -> Invalid {
    Invalid::Spec(Error::Unsupported {
        field: "netns_path".to_owned(),
        reason,
    })
}

/// What the kubelet said; nothing of who has no kubelet.
fn config(request: &CreateSandboxRequest) -> Result<Option<PodSandboxConfig>, Invalid> {
    let Some(options) = request.options.as_ref() else {
        return Ok(None);
    };
    match options.type_url.rsplit('/').next().unwrap_or_default() {
        "" => Ok(None),
        CONFIG => PodSandboxConfig::parse_from_bytes(&options.value)
            .map(Some)
            .map_err(Invalid::Config),
        other => Err(Invalid::Options(other.to_owned())),
    }
}

/// The host's own are not the pod's to have.
fn check_namespaces(security: &LinuxSandboxSecurityContext) -> Result<(), Error> {
    let options = &security.namespace_options;
    for (kind, mode) in [
        ("network", options.network),
        ("pid", options.pid),
        ("ipc", options.ipc),
    ] {
        if mode == NamespaceMode::NODE.into() {
            return Err(Error::HostNamespace { kind });
        }
    }
    Ok(())
}

fn marks(id: &Id) -> [(String, String); 2] {
    [
        (TYPE.to_owned(), "sandbox".to_owned()),
        (SANDBOX_ID.to_owned(), id.to_string()),
    ]
}

fn limits_of(resources: &LinuxContainerResources) -> PodLimits {
    // Less than nothing is none.
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    PodLimits {
        memory_limit_in_bytes: resources.memory_limit_in_bytes,
        cpu_quota: resources.cpu_quota,
        cpu_period: positive(resources.cpu_period),
        cpu_shares: positive(resources.cpu_shares),
    }
}

fn process(security: &LinuxSandboxSecurityContext) -> Result<agent::Process, Error> {
    let number = |field: &str, value: i64| {
        u32::try_from(value).map_err(|_| Error::Invalid {
            field: format!("security_context.{field}"),
            value: value.to_string(),
            problem: "is no user or group",
        })
    };
    let groups = security.supplemental_groups.iter();
    Ok(agent::Process {
        uid: number("run_as_user", security.run_as_user.value)?,
        gid: number("run_as_group", security.run_as_group.value)?,
        additional_gids: groups
            .map(|group| number("supplemental_groups", *group))
            .collect::<Result<_, _>>()?,
        ..agent::Process::default()
    })
}

fn id_mapping(range: &IDMapping) -> IdMapping {
    IdMapping {
        container_id: range.container_id,
        host_id: range.host_id,
        size: range.length,
        ..IdMapping::default()
    }
}

/// As the CRI plugin names it for containers: below the pod's, or a scope in the
/// pod's slice.
fn cgroups_path(parent: &str, id: &Id) -> Option<String> {
    let name = Path::new(parent).file_name()?.to_str()?;
    Some(match name.ends_with(".slice") {
        true => format!("{name}:cri-containerd:{id}"),
        false => Path::new(parent).join(id).to_string_lossy().into_owned(),
    })
}

/// As the CRI plugin writes them for others; see resolv.conf(5).
fn contents(hostname: &str, dns: Option<&DNSConfig>) -> Contents {
    let name = match hostname {
        "" => nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok()),
        name => Some(name.to_owned()),
    };
    Contents {
        hostname: name.map(|name| format!("{name}\n")),
        hosts: fs::read_to_string(HOSTS).ok(),
        resolver: match dns {
            Some(dns) => Some(resolver(dns)),
            None => fs::read_to_string(RESOLVER).ok(),
        },
    }
}

fn resolver(dns: &DNSConfig) -> String {
    let mut text = String::new();
    let mut line = |word: &str, values: &[String]| {
        if !values.is_empty() {
            text += &format!("{word} {}\n", values.join(" "));
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    text
}
