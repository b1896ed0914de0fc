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
