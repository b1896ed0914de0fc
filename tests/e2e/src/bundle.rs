//! A bundle: a folder with a root file system and `config.json`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::host::Host;
use crate::images;

/// A bundle with a BusyBox root of its own.
pub struct Bundle {
    /// Its folder.
    pub dir: PathBuf,
    /// What `config.json` holds; [`Bundle::write`] writes it.
    pub spec: Value,
}

impl Bundle {
    /// A bundle that runs `arguments`.
    pub fn new(host: &Host, arguments: &[&str]) -> Result<Bundle> {
        let dir = host.new_folder("b")?;
        images::copy_rootfs(host, &dir.join("rootfs"))?;
        let mut spec = template();
        spec["process"]["args"] = json!(arguments);
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/{}", host.cgroup, host.new_id()));
        let bundle = Bundle { dir, spec };
        bundle.write()?;
        Ok(bundle)
    }

    /// Changes the configuration.
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Result<Bundle> {
        change(&mut self.spec);
        self.write()?;
        Ok(self)
    }

    /// Adds a bind mount.
    pub fn bind(self, source: &str, destination: &str) -> Result<Bundle> {
        self.edit(|spec| {
            let mount = json!({"destination": destination, "type": "bind", "source": source,
                "options": ["rbind", "rprivate", "rw"]});
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.push(mount);
            }
        })
    }

    /// Writes `config.json`.
    pub fn write(&self) -> Result<()> {
        let path = self.dir.join("config.json");
        let text = serde_json::to_vec_pretty(&self.spec)?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// The folder as an argument.
    pub fn path(&self) -> &str {
        self.dir.to_str().unwrap_or_default()
    }

    /// The cgroup that the configuration names.
    pub fn cgroup(&self) -> &str {
        self.spec["linux"]["cgroupsPath"]
            .as_str()
            .unwrap_or_default()
    }
}

/// A container as container engines ask for it: config.md of the OCI runtime
/// specification 1.0.2.
fn template() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "fort",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn mounts() -> Value {
    let safe = ["nosuid", "noexec", "nodev"];
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ])
}
