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

#[cfg(test)]
mod tests {
    use std::io;

    use casemate_sandbox::spec::Resolved;
    use containerd_shim_protos::protobuf::{MessageField, well_known_types::any::Any};

    use super::{messages::NamespaceOption, *};

    /// A host with one network in use.
    struct Host;

    impl HostFacts for Host {
        fn resolve(&self, _: &HostPath) -> io::Result<Resolved> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn is_host_network(&self, path: &HostPath) -> io::Result<bool> {
            Ok(path.as_path() == Path::new("/proc/1/ns/net"))
        }

        fn container_of(
            &self,
            _: oci_spec::runtime::LinuxNamespaceType,
            path: &HostPath,
        ) -> Option<String> {
            (path.as_path() == Path::new("/run/netns/taken")).then(|| "other".to_owned())
        }
    }

    fn request(config: &PodSandboxConfig) -> CreateSandboxRequest {
        CreateSandboxRequest {
            sandbox_id: "tower".to_owned(),
            bundle_path: "/bundle".to_owned(),
            netns_path: "/run/netns/cni-1".to_owned(),
            options: MessageField::some(Any {
                type_url: CONFIG.to_owned(),
                value: config.write_to_bytes().unwrap(),
                ..Any::default()
            }),
            ..Default::default()
        }
    }

    fn pod(request: &CreateSandboxRequest) -> Result<Pod, String> {
        let id = Id::new("tower").unwrap();
        Pod::new(&id, request, &Host).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_kubelet_said_becomes_a_pod() {
        let mut config = PodSandboxConfig {
            hostname: "web".to_owned(),
            ..PodSandboxConfig::default()
        };
        config
            .annotations
            .insert("casemate.io/x".into(), "1".into());
        config.annotations.insert(TYPE.into(), "container".into());
        let dns = config.dns_config.mut_or_insert_default();
        dns.servers = vec!["192.0.2.1".to_owned(), "192.0.2.2".to_owned()];
        dns.options = vec!["ndots:5".to_owned(), "edns0".to_owned()];
        let linux = config.linux.mut_or_insert_default();
        linux.cgroup_parent = "/kubepods/pod1".to_owned();
        linux
            .resources
            .mut_or_insert_default()
            .memory_limit_in_bytes = 1 << 20;
        let security = linux.security_context.mut_or_insert_default();
        security.run_as_user.mut_or_insert_default().value = 7;
        let made = pod(&request(&config)).unwrap();
        let host = &made.split.host;
        assert_eq!(made.bundle, Path::new("/bundle"));
        assert_eq!(made.netns.unwrap(), Path::new("/run/netns/cni-1"));
        assert_eq!(host.cgroups_path.as_deref(), Some("/kubepods/pod1/tower"));
        assert_eq!(host.annotations["casemate.io/x"], "1");
        // Nobody says by annotation that it is something else.
        assert_eq!(host.annotations[TYPE], "sandbox");
        let memory = host.sizing().unwrap().memory().as_ref().unwrap();
        assert_eq!(memory.limit(), Some(1 << 20));
        assert_eq!(made.split.guest.hostname, "web");
        assert_eq!(made.split.guest.process.uid, 7);
        assert_eq!(made.files.hostname.unwrap(), "web\n");
        let resolver = "nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:5 edns0\n";
        assert_eq!(made.files.resolver.unwrap(), resolver);
    }

    #[test]
    fn without_a_kubelet_there_is_a_pod_as_well() {
        let made = pod(&CreateSandboxRequest::default()).unwrap();
        assert_eq!((made.netns, made.files), (None, Contents::default()));
        assert_eq!(made.split.host.network, NetworkNamespace::New);
        assert_eq!(made.split.host.cgroups_path, None);
    }

    #[test]
    fn the_cgroup_is_called_as_for_others() {
        let id = Id::new("s").unwrap();
        for (parent, expected) in [
            ("", None),
            ("/kubepods/pod1", Some("/kubepods/pod1/s")),
            (
                "/kubepods.slice/kubepods-pod1.slice",
                Some("kubepods-pod1.slice:cri-containerd:s"),
            ),
        ] {
            assert_eq!(cgroups_path(parent, &id).as_deref(), expected);
        }
    }

    #[test]
    fn others_are_refused() {
        type Change = fn(&mut CreateSandboxRequest, &mut PodSandboxConfig);
        fn options(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
            let linux = config.linux.mut_or_insert_default();
            let security = linux.security_context.mut_or_insert_default();
            security.namespace_options.mut_or_insert_default()
        }
        let cases: [(Change, &str); 9] = [
            (
                |_, config| options(config).network = NamespaceMode::NODE.into(),
                "host's network namespace",
            ),
            (
                |_, config| options(config).pid = NamespaceMode::NODE.into(),
                "host's pid namespace",
            ),
            (
                |_, config| options(config).ipc = NamespaceMode::NODE.into(),
                "host's ipc namespace",
            ),
            (
                |request, _| request.netns_path = "/proc/1/ns/net".to_owned(),
                "host's network namespace",
            ),
            (
                |request, _| request.netns_path = "/run/netns/taken".to_owned(),
                "is the network of container \"other\" already",
            ),
            (
                |request, _| request.netns_path = "netns".to_owned(),
                "netns_path: \"netns\" is not absolute",
            ),
            (
                |request, _| request.rootfs.push(Default::default()),
                "no root file system",
            ),
            (
                |_, config| {
                    let linux = config.linux.mut_or_insert_default();
                    linux.sysctls.insert("kernel.panic".into(), "1".into());
                },
                "linux.sysctl",
            ),
            (
                |_, config| {
                    let linux = config.linux.mut_or_insert_default();
                    let security = linux.security_context.mut_or_insert_default();
                    security.run_as_user.mut_or_insert_default().value = -1;
                },
                "run_as_user: \"-1\" is no user or group",
            ),
        ];
        for (change, text) in cases {
            let mut config = PodSandboxConfig::default();
            change(&mut CreateSandboxRequest::default(), &mut config);
            let mut request = request(&config);
            change(&mut request, &mut config);
            let error = pod(&request).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        let mut request = request(&PodSandboxConfig::default());
        request.options.mut_or_insert_default().type_url = "other".to_owned();
        assert!(pod(&request).unwrap_err().contains("\"other\" is unknown"));
    }
}
