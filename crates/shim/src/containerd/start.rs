//! `start`: the address of the monitor that serves a container, made when the
//! container brings its sandbox.

use std::{
    env, fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use casemate_config::Config;
use casemate_linux::socket;
use casemate_sandbox::{
    Id, Size,
    cgroup::Cgroup,
    claim::Claim,
    layout,
    neighbours::Neighbours,
    pod::{self, Role},
    processes::{Containerd, MonitorProcess, MonitorStart},
    settings::{Settings, size_of},
    size::HostSize,
    spec::{self, Bundle, HostPath, HostSpec, LiveHost, NetworkNamespace},
    state,
    timeline::begin_of_process_ns,
};

use super::{arguments::Arguments, bundle, options::Request, place};
use crate::CONTROL_SOCKET;

/// containerd tells the address of its event service in the environment.
const EVENTS: &str = "TTRPC_ADDRESS";

/// What is asked, and where.
struct Start<'a> {
    arguments: &'a Arguments,
    id: Id,
    root: PathBuf,
    bundle: PathBuf,
    begun_ns: u64,
}

/// What a monitor begins with.
struct Beginning<'a> {
    config: Config,
    template: Size,
    warnings: Vec<String>,
    netns: Option<&'a Path>,
    hostname: &'a str,
    cgroup: Option<&'a str>,
    events: Option<String>,
    debug: bool,
    is_pod: bool,
}

/// Answers in the form that this containerd understands.
pub(super) fn run(arguments: &Arguments, input: &[u8]) -> Result<Vec<u8>> {
    let begun_ns = begin_of_process_ns();
    let request = Request::parse(input)?;
    let bundle = match &arguments.bundle {
        Some(bundle) => bundle.clone(),
        None => env::current_dir().context("working directory")?,
    };
    let start = Start {
        arguments,
        id: Id::new(&arguments.id)?,
        root: place::root(&arguments.address, &arguments.namespace),
        bundle,
        begun_ns,
    };
    let address = match bundle::is_pod(&start.bundle) {
        true => start.begin_pod(&request)?,
        false => start.begin_or_join(&request)?,
    };
    Ok(match request.bootstrap {
        None => address.into_bytes(),
        Some(_) => serde_json::to_vec(&serde_json::json!({
            "version": 3,
            "address": address,
            "protocol": "ttrpc",
        }))?,
    })
}

impl Start<'_> {
    /// Reads the bundle to refuse a bad one before anything is touched; the
    /// monitor reads it again for itself.
    fn read_bundle(&self, neighbours: &Neighbours) -> Result<HostSpec> {
        let path = self.bundle.join("config.json");
        let json = fs::read(&path).with_context(|| path.display().to_string())?;
        let spec = spec::parse(&json).with_context(|| path.display().to_string())?;
        let directory = HostPath::new(&self.bundle)
            .with_context(|| format!("bundle {}: not absolute", self.bundle.display()))?;
        let bundle = Bundle {
            container_id: self.id.as_str(),
            directory: &directory,
        };
        Ok(spec::host_spec(&spec, bundle, &LiveHost(neighbours))?)
    }

    /// Directory of the running sandbox in which the container will be: that of
    /// its pod, or of whose namespaces it joins.
    fn home(&self, host: &HostSpec, neighbours: &Neighbours) -> Result<Option<PathBuf>> {
        if let Role::Member { sandbox_id } = pod::role(&host.annotations) {
            let sandbox = Id::new(&sandbox_id)?;
            let directory = layout::sandbox_of(&self.root.join(&sandbox));
            return match directory.filter(|directory| state::monitor_lives(directory)) {
                None => bail!("pod {sandbox_id:?}: its sandbox does not run"),
                some => Ok(some),
            };
        }
        let home = neighbours.home(host)?;
        Ok(home.map(|neighbour| neighbour.sandbox.clone()))
    }

    fn begin_or_join(&self, request: &Request) -> Result<String> {
        let neighbours = Neighbours::under(&self.root);
        let host = self.read_bundle(&neighbours)?;
        match self.home(&host, &neighbours)? {
            Some(sandbox) => self.note_address(&sandbox),
            None => self.begin(&host, request),
        }
    }

    /// Leaves the address of the sandbox's monitor in the bundle, where
    /// containerd up to 1.7 looks for it when it is started again, and gives it.
    fn note_address(&self, sandbox: &Path) -> Result<String> {
        let address = format!("unix://{}", sandbox.join(CONTROL_SOCKET).display());
        let place = self.bundle.join("address");
        fs::write(&place, &address).with_context(|| place.display().to_string())?;
        Ok(address)
    }

    /// Makes a sandbox for the container and gives its monitor's address; its
    /// machine boots from now on.
    fn begin(&self, host: &HostSpec, request: &Request) -> Result<String> {
        if let Some(path) = &host.cgroups_path {
            Cgroup::check(path)?;
        }
        let config = request.options.config()?;
        let Settings {
            config,
            template,
            warnings,
        } = Settings::new(config, host, HostSize::now())?;
        self.spawn(Beginning {
            config,
            template,
            warnings,
            netns: match &host.network {
                NetworkNamespace::Path(path) => Some(path.as_path()),
                NetworkNamespace::New | NetworkNamespace::Of(_) => None,
            },
            hostname: host.hostname.as_deref().unwrap_or(self.id.as_str()),
            cgroup: host.cgroups_path.as_deref(),
            events: events(request),
            debug: is_verbose(request),
            is_pod: false,
        })
    }

    /// Makes the monitor of a pod; what the pod is like, and so how large its
    /// machine, it hears from containerd (CreateSandbox).
    fn begin_pod(&self, request: &Request) -> Result<String> {
        let config = request.options.config()?;
        self.spawn(Beginning {
            // What the pod is like may change it.
            template: size_of(&config.machine),
            config,
            warnings: Vec::new(),
            netns: None,
            hostname: self.id.as_str(),
            cgroup: None,
            events: events(request),
            debug: is_verbose(request),
            is_pod: true,
        })
    }

    fn spawn(&self, beginning: Beginning<'_>) -> Result<String> {
        let claim = Claim::of(&self.root, &self.id, None)?;
        let address = self.note_address(&claim.sandbox)?;
        let control = claim.sandbox.join(CONTROL_SOCKET);
        let listener = socket::listen(&control).with_context(|| control.display().to_string())?;
        let monitor = MonitorProcess::spawn(MonitorStart {
            id: &self.id,
            root: &self.root,
            sandbox: &claim.sandbox,
            netns: beginning.netns,
            hostname: beginning.hostname,
            cgroup: beginning.cgroup,
            config: &beginning.config,
            template: beginning.template,
            debug: self.arguments.debug || beginning.debug,
            begun_ns: self.begun_ns,
            containerd: Some(Containerd {
                events: beginning.events.as_deref(),
                namespace: &self.arguments.namespace,
                bundle: &self.bundle,
                warnings: &beginning.warnings,
                is_pod: beginning.is_pod,
                listener: listener.as_fd(),
            }),
        })?;
        if let Err(error) = monitor.await_readiness() {
            monitor.end();
            return Err(error.into());
        }
        claim.keep();
        Ok(address)
    }
}

fn is_verbose(request: &Request) -> bool {
    request
        .bootstrap
        .as_ref()
        .is_some_and(|params| params.debug)
}

/// Where events go: a path, without the scheme that some versions write.
fn events(request: &Request) -> Option<String> {
    let told = request
        .bootstrap
        .as_ref()
        .map(|params| params.events.clone());
    let address = told.filter(|address| !address.is_empty());
    let address = address.or_else(|| env::var(EVENTS).ok())?;
    let path = address.strip_prefix("unix://").unwrap_or(&address);
    Path::new(path).is_absolute().then(|| path.to_owned())
}
