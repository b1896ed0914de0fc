//! What containerd is told, and the place in which it runs.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::command::Command;
use crate::host::Host;
use crate::images::PAUSE;
use crate::runtime::{Kind, Runtime};
use crate::templates;

/// Where Debian's network plugins are: package containernetworking-plugins.
pub(super) const NETWORK_PLUGINS: &str = "/usr/lib/cni";

/// What the name of a runtime ends with by which containerd speaks the Sandbox
/// API.
pub(super) const BY_SANDBOX_API: &str = "-sandbox";

/// Makes the place: folder `$1` shows its files in `/etc`, where clients look
/// for networks, and what they write into `/var/lib` and look for in `/opt` is
/// the place's own.
const PLACE: &str = "set -e; ip link set lo up
    mount -t overlay overlay -o lowerdir=$1:/etc /etc
    mount -t tmpfs tmpfs /var/lib; mount -t tmpfs tmpfs /opt
    mkdir -p /opt/cni; ln -s $2 /opt/cni/bin
    exec sleep infinity";

/// The folder of a scenario's containerd, and what is in it.
pub(super) struct Configuration<'h> {
    host: &'h Host,
    /// The folder.
    pub(super) folder: PathBuf,
}

impl<'h> Configuration<'h> {
    pub(super) fn of(host: &'h Host) -> Configuration<'h> {
        let folder = host.dir.join("containerd");
        Configuration { host, folder }
    }

    pub(super) fn file(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// The folder of bundles: one of each namespace.
    pub(super) fn tasks(&self) -> PathBuf {
        self.folder.join("state/io.containerd.runtime.v2.task")
    }

    pub(super) fn networks(&self) -> PathBuf {
        self.folder.join("etc/cni/net.d")
    }

    /// The folder in which given addresses are noted.
    pub(super) fn addresses(&self) -> PathBuf {
        self.folder.join("addresses")
    }

    /// The folder with the shims that did not come with the engine.
    pub(super) fn programs(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// Where the engine looks for shims and runtimes: its own before the system's.
    pub(super) fn search_path(&self, programs: &Path) -> String {
        let inherited = env::var("PATH").unwrap_or_default();
        let (ours, theirs) = (self.programs(), programs.display());
        format!("{}:{theirs}:{inherited}:/usr/sbin:/sbin", ours.display())
    }

    /// A process in new namespaces that waits there for the engine.
    pub(super) fn place(&self) -> Command<'h> {
        self.host
            .command("unshare")
            .args(["--net", "--mount", "--propagation", "private"])
            .args(["sh", "-c", PLACE, "sh"])
            .arg(self.folder.join("etc"))
            .arg(NETWORK_PLUGINS)
            .limit(std::time::Duration::from_secs(600))
    }

    /// Writes all of it.
    pub(super) fn write(&self, engine: &Path) -> Result<()> {
        for folder in [self.programs(), self.networks(), self.folder.join("tmp")] {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let runtimes = self.runtimes(engine)?;
        let write = |path: PathBuf, text: String| {
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write(self.file(), self.engine(&runtimes))?;
        write(self.networks().join("10-bridge.conflist"), self.bridge())?;
        let templates = fs::read_to_string(templates::OFF).unwrap_or_default();
        let own = format!("[vmm]\nmin_tier = \"emulated\"\n{templates}");
        write(self.own(), own)
    }

    /// Casemate's configuration file, named by the runtime's options.
    fn own(&self) -> PathBuf {
        self.folder.join("casemate.toml")
    }

    /// Links the shims, and says which runtimes there are.
    fn runtimes(&self, engine: &Path) -> Result<Vec<Kind>> {
        let link = |from: &Path, name: &str| {
            let place = self.programs().join(name);
            symlink(from, &place).with_context(|| place.display().to_string())
        };
        let shim = "containerd-shim-runc-v2";
        link(&engine.join(shim), shim)?;
        let mut kinds = vec![Kind::Runc];
        if let Ok(casemate) = Runtime::find(Kind::Casemate) {
            link(&casemate.path, "containerd-shim-casemate-v2")?;
            kinds.push(Kind::Casemate);
        }
        Ok(kinds)
    }

    /// Version 2 of containerd's configuration, which later releases understand.
    fn engine(&self, runtimes: &[Kind]) -> String {
        let folder = self.folder.display();
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        let mut text = format!(
            "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
             [grpc]\naddress = \"{}\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{folder}/opt\"\n\
             [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n\
             [{cri}]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\n\
             [{cri}.cni]\nbin_dir = \"{NETWORK_PLUGINS}\"\nconf_dir = \"{}\"\n",
            self.socket().display(),
            self.networks().display(),
        );
        for kind in runtimes {
            let runtime = format!("{cri}.containerd.runtimes.{kind}");
            text += &format!("[{runtime}]\nruntime_type = \"io.containerd.{kind}.v2\"\n");
            if *kind == Kind::Casemate {
                text += &format!(
                    "pod_annotations = [\"casemate.io/*\", \"io.katacontainers.*\"]\n\
                     container_annotations = [\"casemate.io/*\", \"io.katacontainers.*\"]\n\
                     privileged_without_host_devices = true\n\
                     [{runtime}.options]\nConfigPath = \"{}\"\n",
                    self.own().display()
                );
                // The same without containers of the engine's for pods. Releases
                // before 2 do not know the word, and 2.1 can start no container
                // in such a pod when its runtime has options.
                text += &format!(
                    "[{runtime}{BY_SANDBOX_API}]\nruntime_type = \"io.containerd.{kind}.v2\"\n\
                     sandboxer = \"shim\"\nprivileged_without_host_devices = true\n"
                );
            }
        }
        text
    }

    /// A bridge with addresses and published ports.
    fn bridge(&self) -> String {
        json!({
            "cniVersion": "0.4.0",
            "name": "bridge",
            "plugins": [
                {
                    "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "dataDir": self.addresses(),
                        "ranges": [[{"subnet": "10.87.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
        .to_string()
    }
}
