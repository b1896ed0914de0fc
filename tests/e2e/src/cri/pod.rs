//! A pod, from its description to its end.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use protobuf::MessageField;

use super::messages::{
    DNSConfig, Empty, LinuxPodSandboxStats, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxRequest, PodSandboxState, PodSandboxStatsResponse, PodSandboxStatus,
    PodSandboxStatusResponse, PortForwardRequest, PortMapping, RunPodSandboxRequest,
    RunPodSandboxResponse, StreamingResponse,
};
use super::{ContainerBuilder, Cri, session};

/// The description of a pod.
#[must_use]
pub struct PodBuilder<'c, 'h> {
    cri: &'c Cri<'h>,
    config: PodSandboxConfig,
    handler: String,
}

impl<'c, 'h> PodBuilder<'c, 'h> {
    pub(super) fn new(cri: &'c Cri<'h>, name: &str) -> PodBuilder<'c, 'h> {
        let mut config = PodSandboxConfig::new();
        let metadata = config.metadata.mut_or_insert_default();
        metadata.name = name.to_owned();
        metadata.uid = cri.host.new_id();
        metadata.namespace = "scenarios".to_owned();
        config.hostname = name.to_owned();
        config.linux.mut_or_insert_default().cgroup_parent = format!("/{}", cri.host.cgroup);
        let handler = cri.handler.clone();
        let builder = PodBuilder {
            cri,
            config,
            handler,
        };
        // What a kubelet asks for unless it is told otherwise.
        builder.namespaces(|namespaces| namespaces.pid = NamespaceMode::CONTAINER.into())
    }

    /// Changes the message.
    pub fn edit(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// The runtime's name, where it is not the scenario's.
    pub fn handler(mut self, handler: &str) -> Self {
        self.handler = handler.to_owned();
        self
    }

    /// Adds an annotation.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.edit(|config| {
            config.annotations.insert(key.to_owned(), value.to_owned());
        })
    }

    /// Which namespaces the pod shares, and with whom.
    pub fn namespaces(self, change: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.edit(|config| {
            let linux = config.linux.mut_or_insert_default();
            let security = linux.security_context.mut_or_insert_default();
            change(security.namespace_options.mut_or_insert_default());
        })
    }

    /// Sets what resolves names.
    pub fn dns(self, servers: &[&str], searches: &[&str], options: &[&str]) -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        self.edit(|config| {
            config.dns_config = MessageField::some(DNSConfig {
                servers: owned(servers),
                searches: owned(searches),
                options: owned(options),
                ..Default::default()
            });
        })
    }

    /// Publishes a TCP port of the pod on the host.
    pub fn publish(self, host_port: u16, container_port: u16) -> Self {
        self.edit(|config| {
            config.port_mappings.push(PortMapping {
                host_port: host_port.into(),
                container_port: container_port.into(),
                ..Default::default()
            });
        })
    }

    /// Sets a parameter of the kernel.
    pub fn sysctl(self, key: &str, value: &str) -> Self {
        self.edit(|config| {
            let linux = config.linux.mut_or_insert_default();
            linux.sysctls.insert(key.to_owned(), value.to_owned());
        })
    }

    /// Runs it.
    pub fn run(mut self) -> Result<Pod<'c, 'h>> {
        let logs = self.cri.host.new_folder("logs")?;
        self.config.log_directory = logs.to_string_lossy().into_owned();
        let request = RunPodSandboxRequest {
            config: MessageField::some(self.config.clone()),
            runtime_handler: self.handler,
            ..Default::default()
        };
        let answer: RunPodSandboxResponse = self.cri.runtime("RunPodSandbox", &request)?;
        Ok(Pod {
            cri: self.cri,
            id: answer.pod_sandbox_id,
            config: self.config,
            logs,
        })
    }
}

/// A pod that was run.
pub struct Pod<'c, 'h> {
    pub(super) cri: &'c Cri<'h>,
    /// Its id.
    pub id: String,
    pub(super) config: PodSandboxConfig,
    pub(super) logs: PathBuf,
}

impl<'c, 'h> Pod<'c, 'h> {
    /// A container in it that runs a program of the BusyBox image.
    pub fn container<'p>(&'p self, name: &str, words: &[&str]) -> ContainerBuilder<'p, 'c, 'h> {
        ContainerBuilder::new(self, name, words)
    }

    /// A container that does nothing.
    pub fn idle<'p>(&'p self, name: &str) -> ContainerBuilder<'p, 'c, 'h> {
        self.container(name, &["sleep", "1000000"])
    }

    /// Its status.
    pub fn status(&self) -> Result<PodSandboxStatus> {
        let answer: PodSandboxStatusResponse =
            self.cri.runtime("PodSandboxStatus", &self.request())?;
        answer.status.into_option().context("no status")
    }

    /// Whether containers can run in it.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(self.status()?.state == PodSandboxState::SANDBOX_READY.into())
    }

    /// Its address.
    pub fn address(&self) -> Result<String> {
        Ok(self.status()?.network.ip.clone())
    }

    /// What it uses.
    pub fn stats(&self) -> Result<LinuxPodSandboxStats> {
        let answer: PodSandboxStatsResponse =
            self.cri.runtime("PodSandboxStats", &self.request())?;
        let stats = answer.stats.into_option().context("no statistics")?;
        stats.linux.into_option().context("no statistics of Linux")
    }

    /// What somebody behind a port of it answers to who says `said`, by port-forward.
    pub fn forward(&self, port: u16, said: &str) -> Result<String> {
        let request = PortForwardRequest {
            pod_sandbox_id: self.id.clone(),
            port: vec![port.into()],
            ..Default::default()
        };
        let answer: StreamingResponse = self.cri.runtime("PortForward", &request)?;
        session::forward(&self.cri.network, &answer.url, port, said)
    }

    /// Stops it, and all containers in it.
    pub fn stop(&self) -> Result<()> {
        self.cri
            .runtime("StopPodSandbox", &self.request())
            .map(|_: Empty| ())
    }

    /// Removes it, and all containers in it.
    pub fn remove(&self) -> Result<()> {
        self.cri
            .runtime::<Empty>("RemovePodSandbox", &self.request())?;
        let logs = self.logs.display().to_string();
        fs::remove_dir_all(&self.logs).context(logs)
    }

    /// Stops and removes it.
    pub fn end(&self) -> Result<()> {
        self.stop()?;
        self.remove()
    }

    fn request(&self) -> PodSandboxRequest {
        PodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
            ..Default::default()
        }
    }
}
