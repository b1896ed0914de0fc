//! `config.json` (OCI runtime spec) split once into what the host does and
//! what the guest does.
//!
//! Everything that a container's configuration asks for is decided here and
//! nowhere else: it becomes part of the [`HostSpec`], part of the
//! [`GuestSpec`], a warning, or a refusal before anything is touched. Nothing
//! is read and ignored. (Fields that the runtime spec does not define are, as
//! it demands.)
//!
//! The split is pure. What it needs to know of the host (what kind of thing a
//! mount's source is, which container a namespace belongs to) is asked of
//! [`HostFacts`], so tests need no file system.

mod capabilities;
mod devices;
mod dispatch;
mod error;
mod facts;
mod host;
mod mounts;
mod namespaces;
mod options;
mod path;
mod pause;
mod pod_limits;
mod process;
mod refusals;
mod resources;
mod scheduling;
mod seccomp;
mod sysctl;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;

use casemate_protocol::agent;
use oci_spec::runtime::{Linux, LinuxResources, LinuxSeccomp, Process, Spec};
use serde::de::DeserializeOwned;

pub use agent::ContainerSpec as GuestSpec;
pub use capabilities::known_capabilities;
pub use error::Error;
pub use facts::{HostFacts, LiveHost, Resolved, Source};
pub use host::{HostSpec, JoinedNamespace, NetworkNamespace, Share};
pub(crate) use options::Options as MountOptions;
pub use options::known_mount_options;
pub use path::{GuestPath, HostPath};
pub(crate) use pause::share_memory;
pub use pause::{Pause, pause};
pub use pod_limits::Limits as PodLimits;
pub use process::exec_process;
pub(crate) use resources::{CPU_PERIOD_US, cpu_max, cpu_weight};

use namespaces::{IdMappings, Namespaces};
use options::Options;
use resources::cgroup_settings;

use crate::pod::{self, Role};

/// The runtime spec by which a container is made that comes without a
/// config.json.
pub(crate) const VERSION: &str = "1.2.0";

/// Reads JSON. A list in place of an object would pass as one without fields.
fn object<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    if json.trim_ascii_start().starts_with(b"[") {
        let reason = "it is a list, not an object".to_owned();
        return Err(Error::Malformed { reason });
    }
    Ok(serde_json::from_slice(json)?)
}

/// Reads a config.json.
pub fn parse(json: &[u8]) -> Result<Spec, Error> {
    object(json)
}

/// Reads the process.json of an exec.
pub fn parse_process(json: &[u8]) -> Result<Process, Error> {
    object(json)
}

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

/// Splits `spec`, or says why the container cannot be run.
pub fn split(spec: &Spec, bundle: Bundle<'_>, facts: &dyn HostFacts) -> Result<Split, Error> {
    let compile: Compile = match has_program(spec) {
        true => |profile| seccomp::compile(profile).map(Some),
        false => check_only,
    };
    split_with(spec, bundle, facts, compile)
}

/// The host's part alone, after the same checks. It saves the milliseconds in
/// which a seccomp profile is compiled.
pub fn host_spec(
    spec: &Spec,
    bundle: Bundle<'_>,
    facts: &dyn HostFacts,
) -> Result<HostSpec, Error> {
    Ok(split_with(spec, bundle, facts, check_only)?.host)
}

fn check_only(profile: &LinuxSeccomp) -> Result<Option<agent::Seccomp>, Error> {
    seccomp::check(profile).map(|_flags| None)
}

/// All but the sandbox containers of pods have one.
fn has_program(spec: &Spec) -> bool {
    pod::role(spec.annotations().iter().flatten()) != Role::Sandbox
}

/// New limits of a container.
#[derive(Clone, Debug)]
pub struct Update {
    /// As the client wants them.
    pub resources: LinuxResources,
    /// Settings of the container's cgroup in the guest.
    pub settings: BTreeMap<String, String>,
    /// As in [`HostSpec::warnings`].
    pub warnings: Vec<String>,
}

/// Reads new limits, OCI resources as JSON, or says why they cannot be had.
pub fn update(resources: &[u8]) -> Result<Update, Error> {
    let resources: LinuxResources = object(resources)?;
    let mut warnings = Vec::new();
    let settings = cgroup_settings(&resources, &mut warnings)?;
    Ok(Update {
        resources,
        settings,
        warnings,
    })
}

type Compile = fn(&LinuxSeccomp) -> Result<Option<agent::Seccomp>, Error>;

fn split_with(
    spec: &Spec,
    bundle: Bundle<'_>,
    facts: &dyn HostFacts,
    compile: Compile,
) -> Result<Split, Error> {
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::missing("process"))?;
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| Error::missing("linux"))?;
    let mut warnings = Vec::new();
    refusals::check(spec, linux, &mut warnings)?;
    let namespaces = namespaces::split(linux, facts)?;
    let has_program = has_program(spec);
    let rootfs = match has_program {
        true => Some(rootfs(spec, bundle, facts)?),
        false => None,
    };
    let mounts = mounts::split(
        spec.mounts().as_deref().unwrap_or_default(),
        bundle,
        facts,
        &mut warnings,
    )?;
    let guest = GuestSpec {
        process: Some(guest_process(process, linux, compile, &mut warnings)?).into(),
        rootfs: GuestPath::rootfs(bundle.container_id).into_string(),
        readonly_rootfs: readonly_rootfs(spec),
        hostname: spec.hostname().clone().unwrap_or_default(),
        domainname: spec.domainname().clone().unwrap_or_default(),
        start_hooks: host::guest_hooks(spec),
        ..guest_linux(linux, &namespaces, mounts.guest, bundle, &mut warnings)?
    };
    let annotations = annotations(spec);
    let pod = pod_limits::resources(&annotations)?;
    let host = HostSpec {
        rootfs,
        readonly_rootfs: guest.readonly_rootfs,
        shares: mounts.shares,
        resolver: mounts.resolver,
        network: namespaces.network,
        joined: namespaces.joined,
        cgroups_path: cgroups_path(linux),
        resources: match &pod {
            Some(pod) => Some(pod_limits::on_the_host(pod)),
            None => linux.resources().clone(),
        },
        pod,
        hooks: host::hooks(spec)?,
        annotations,
        hostname: spec.hostname().clone(),
        command: process.args().clone().unwrap_or_default(),
        terminal: process.terminal().unwrap_or(false),
        warnings,
    };
    let split = Split { host, guest };
    match has_program {
        true => Ok(split),
        false => pause::reduce(split),
    }
}

/// The guest's part of what stands under `linux`, and the mounts.
fn guest_linux(
    linux: &Linux,
    namespaces: &Namespaces,
    mounts: Vec<agent::Mount>,
    bundle: Bundle<'_>,
    warnings: &mut Vec<String>,
) -> Result<GuestSpec, Error> {
    let IdMappings { uid, gid } = namespaces::id_mappings(linux, &namespaces.guest, warnings)?;
    let cgroup = cgroup(linux, bundle, warnings)?;
    let mut devices = devices::nodes(
        linux.devices().as_deref().unwrap_or_default(),
        devices::everything_allowed(&cgroup.device_rules),
        &uid,
        &gid,
        warnings,
    )?;
    if mounts.iter().any(is_bound_dev) {
        devices.clear();
    }
    Ok(GuestSpec {
        rootfs_propagation: rootfs_propagation(linux)?,
        mounts,
        namespaces: namespaces.guest.clone(),
        uid_mappings: uid,
        gid_mappings: gid,
        sysctls: sysctl::parameters(linux.sysctl().as_ref().unwrap_or(&Default::default()))?,
        masked_paths: paths_in_container("linux.maskedPaths", linux.masked_paths())?,
        readonly_paths: paths_in_container("linux.readonlyPaths", linux.readonly_paths())?,
        devices,
        cgroup: Some(cgroup).into(),
        ..GuestSpec::default()
    })
}

/// As with runc, a /dev that the client brings is left as it is.
fn is_bound_dev(mount: &agent::Mount) -> bool {
    mount.destination == "/dev" && mount.flags & libc::MS_BIND != 0
}

fn guest_process(
    process: &Process,
    linux: &Linux,
    compile: Compile,
    warnings: &mut Vec<String>,
) -> Result<agent::Process, Error> {
    let seccomp = linux.seccomp().as_ref().map(compile).transpose()?;
    process::init_process(process, seccomp.flatten(), warnings)
}

fn cgroup(
    linux: &Linux,
    bundle: Bundle<'_>,
    warnings: &mut Vec<String>,
) -> Result<agent::Cgroup, Error> {
    let resources = linux.resources().as_ref();
    let settings = resources
        .map(|resources| cgroup_settings(resources, warnings))
        .transpose()?;
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    Ok(agent::Cgroup {
        path: cgroup_in_guest(bundle.container_id),
        settings: settings.unwrap_or_default().into_iter().collect(),
        device_rules: devices::rules(rules.unwrap_or_default())?,
        ..agent::Cgroup::default()
    })
}

fn cgroup_in_guest(container_id: &str) -> String {
    format!("containers/{container_id}")
}

/// The root file system, which must be an existing folder.
fn rootfs(spec: &Spec, bundle: Bundle<'_>, facts: &dyn HostFacts) -> Result<HostPath, Error> {
    const FIELD: &str = "root.path";
    let root = spec.root().as_ref().ok_or_else(|| Error::missing("root"))?;
    if root.path().as_os_str().is_empty() {
        return Err(Error::missing(FIELD));
    }
    let path = bundle.directory.join(root.path());
    let unusable = |source| Error::Path {
        field: FIELD.to_owned(),
        path: path.clone(),
        source,
    };
    let found = facts.resolve(&path).map_err(unusable)?;
    match found.source {
        Source::Directory | Source::Tmpfs { .. } => Ok(found.path),
        _ => Err(unusable(io::ErrorKind::NotADirectory.into())),
    }
}

fn readonly_rootfs(spec: &Spec) -> bool {
    spec.root()
        .as_ref()
        .and_then(|root| root.readonly())
        .unwrap_or(false)
}

fn rootfs_propagation(linux: &Linux) -> Result<u64, Error> {
    let Some(word) = linux
        .rootfs_propagation()
        .as_ref()
        .filter(|word| !word.is_empty())
    else {
        return Ok(0);
    };
    match Options::parse(std::slice::from_ref(word)).propagation {
        0 => Err(Error::invalid(
            "linux.rootfsPropagation",
            word,
            "is no propagation",
        )),
        propagation => Ok(propagation),
    }
}

/// Masked and read-only paths, which runc takes as they are.
fn paths_in_container(field: &str, paths: &Option<Vec<String>>) -> Result<Vec<String>, Error> {
    let paths = paths.clone().unwrap_or_default();
    for path in &paths {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(Error::invalid(field, path, "is not absolute"));
        }
    }
    Ok(paths)
}

fn cgroups_path(linux: &Linux) -> Option<String> {
    let path = linux
        .cgroups_path()
        .as_ref()?
        .to_string_lossy()
        .into_owned();
    (!path.is_empty()).then_some(path)
}

fn annotations(spec: &Spec) -> BTreeMap<String, String> {
    spec.annotations()
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
