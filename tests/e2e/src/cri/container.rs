//! A container of a pod, from its description to its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use protobuf::MessageField;

use super::messages::{
    AttachRequest, ContainerConfig, ContainerId, ContainerState, ContainerStats,
    ContainerStatsResponse, ContainerStatus, ContainerStatusResponse, CreateContainerRequest,
    Empty, ExecRequest, ExecSyncRequest, ExecSyncResponse, KeyValue, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, StopContainerRequest, StreamingResponse,
    UpdateContainerResourcesRequest,
};
use super::{Cri, Ended, Line, Pod, Session, Wanted};
use crate::images::BUSYBOX;
use crate::wait::{until, until_true};

/// How long what is waited for may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The description of a container.
#[must_use]
pub struct ContainerBuilder<'p, 'c, 'h> {
    pod: &'p Pod<'c, 'h>,
    config: ContainerConfig,
}

impl<'p, 'c, 'h> ContainerBuilder<'p, 'c, 'h> {
    pub(super) fn new(pod: &'p Pod<'c, 'h>, name: &str, words: &[&str]) -> Self {
        let mut config = ContainerConfig::new();
        config.metadata.mut_or_insert_default().name = name.to_owned();
        config.image.mut_or_insert_default().image = BUSYBOX.to_owned();
        config.command = words.iter().map(|word| (*word).to_owned()).collect();
        config.log_path = format!("{}.log", pod.cri.host.new_id());
        let namespaces = &pod.config.linux.security_context.namespace_options;
        let builder = ContainerBuilder { pod, config };
        builder.security(|security| security.namespace_options = namespaces.clone())
    }

    /// Changes the message.
    pub fn edit(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// The image, if it is not BusyBox.
    pub fn image(self, image: &str) -> Self {
        self.edit(|config| config.image.mut_or_insert_default().image = image.to_owned())
    }

    /// Which time it is that the container is made, as its name stays.
    pub fn attempt(self, number: u32) -> Self {
        self.edit(|config| config.metadata.mut_or_insert_default().attempt = number)
    }

    /// Sets a variable of the environment.
    pub fn env(self, key: &str, value: &str) -> Self {
        let (key, value) = (key.to_owned(), value.to_owned());
        let variable = KeyValue {
            key,
            value,
            ..Default::default()
        };
        self.edit(|config| config.envs.push(variable))
    }

    /// Gives it a folder or file of the host.
    pub fn mount(self, from: &Path, to: &str) -> Self {
        self.mount_as(from, to, |_| ())
    }

    /// The same, to read only.
    pub fn mount_read_only(self, from: &Path, to: &str) -> Self {
        self.mount_as(from, to, |mount| mount.readonly = true)
    }

    /// The same, with a change of the message.
    pub fn mount_as(self, from: &Path, to: &str, change: impl FnOnce(&mut Mount)) -> Self {
        let mut mount = Mount {
            container_path: to.to_owned(),
            host_path: from.to_string_lossy().into_owned(),
            ..Default::default()
        };
        change(&mut mount);
        self.edit(|config| config.mounts.push(mount))
    }

    /// Its limits.
    pub fn resources(self, change: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        self.edit(|config| {
            let linux = config.linux.mut_or_insert_default();
            change(linux.resources.mut_or_insert_default());
        })
    }

    /// Its rights.
    pub fn security(self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        self.edit(|config| {
            let linux = config.linux.mut_or_insert_default();
            change(linux.security_context.mut_or_insert_default());
        })
    }

    /// Creates it.
    pub fn create(self) -> Result<Container<'p, 'c, 'h>> {
        let (pod, cri) = (self.pod, self.pod.cri);
        let log = pod.logs.join(&self.config.log_path);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: MessageField::some(self.config),
            sandbox_config: MessageField::some(pod.config.clone()),
            ..Default::default()
        };
        let answer: ContainerId = cri.runtime("CreateContainer", &request)?;
        Ok(Container {
            pod,
            id: answer.container_id,
            log,
        })
    }

    /// Creates and starts it.
    pub fn start(self) -> Result<Container<'p, 'c, 'h>> {
        let container = self.create()?;
        container.start()?;
        Ok(container)
    }
}

/// A container that was created.
pub struct Container<'p, 'c, 'h> {
    pod: &'p Pod<'c, 'h>,
    /// Its id.
    pub id: String,
    /// Its log.
    pub log: PathBuf,
}

impl<'c, 'h> Container<'_, 'c, 'h> {
    /// Starts it.
    pub fn start(&self) -> Result<()> {
        self.does("StartContainer")
    }

    /// Stops it, and kills it if it does not end within so many seconds.
    pub fn stop(&self, timeout: i64) -> Result<()> {
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout,
            ..Default::default()
        };
        let answer: Result<Empty> = self.cri().runtime("StopContainer", &request);
        answer.map(|_| ())
    }

    /// Removes it.
    pub fn remove(&self) -> Result<()> {
        self.does("RemoveContainer")
    }

    /// Begins a new log file, after the old one got another name.
    pub fn reopen_log(&self) -> Result<()> {
        self.does("ReopenContainerLog")
    }

    /// Its status.
    pub fn status(&self) -> Result<ContainerStatus> {
        let answer: ContainerStatusResponse =
            self.cri().runtime("ContainerStatus", &self.request())?;
        answer.status.into_option().context("no status")
    }

    /// Whether it runs.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.status()?.state == ContainerState::CONTAINER_RUNNING.into())
    }

    /// Waits for its end.
    pub fn ended(&self) -> Result<ContainerStatus> {
        self.ended_within(PATIENCE)
    }

    /// Waits that long for its end.
    pub fn ended_within(&self, limit: Duration) -> Result<ContainerStatus> {
        until("the container's end", limit, || {
            let status = self.status()?;
            let ended = status.state == ContainerState::CONTAINER_EXITED.into();
            Ok(ended.then_some(status))
        })
    }

    /// What it uses.
    pub fn stats(&self) -> Result<ContainerStats> {
        let answer: ContainerStatsResponse =
            self.cri().runtime("ContainerStats", &self.request())?;
        answer.stats.into_option().context("no statistics")
    }

    /// Gives it other limits.
    pub fn update(&self, change: impl FnOnce(&mut LinuxContainerResources)) -> Result<()> {
        let mut request = UpdateContainerResourcesRequest::new();
        request.container_id = self.id.clone();
        change(request.linux.mut_or_insert_default());
        let answer: Result<Empty> = self.cri().runtime("UpdateContainerResources", &request);
        answer.map(|_| ())
    }

    /// Runs a command in it to its end: exec sync.
    pub fn exec(&self, words: &[&str]) -> Result<Ended> {
        self.exec_within(0, words)
    }

    /// The same, for so many seconds at most; 0 is no limit.
    pub fn exec_within(&self, timeout: i64, words: &[&str]) -> Result<Ended> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
            ..Default::default()
        };
        let answer: ExecSyncResponse = self.cri().runtime("ExecSync", &request)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ended {
            code: answer.exit_code,
            stdout: text(answer.stdout),
            stderr: text(answer.stderr),
        })
    }

    /// What a script in it prints, which must succeed.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.exec(&["sh", "-c", script])?.exits(0)
    }

    /// Runs a command in it with streams.
    pub fn session(&self, wanted: Wanted, words: &[&str]) -> Result<Session> {
        let request = ExecRequest {
            container_id: self.id.clone(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: true,
            stderr: !wanted.tty,
            ..Default::default()
        };
        let answer: StreamingResponse = self.cri().runtime("Exec", &request)?;
        Session::open(&self.cri().network, &answer.url, wanted)
    }

    /// Attaches to its first process.
    pub fn attach(&self, wanted: Wanted) -> Result<Session> {
        let request = AttachRequest {
            container_id: self.id.clone(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: true,
            stderr: !wanted.tty,
            ..Default::default()
        };
        let answer: StreamingResponse = self.cri().runtime("Attach", &request)?;
        Session::open(&self.cri().network, &answer.url, wanted)
    }

    /// The lines of its log.
    pub fn lines(&self) -> Result<Vec<Line>> {
        let text = fs::read_to_string(&self.log);
        let text = text.with_context(|| self.log.display().to_string())?;
        // The last may be half there.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        whole.lines().map(Line::parse).collect()
    }

    /// What is in its log, of both streams.
    pub fn logged(&self) -> Result<String> {
        let lines = self.lines()?.into_iter();
        Ok(lines.map(|line| line.text).collect::<Vec<_>>().join("\n"))
    }

    /// Waits until its log has this text.
    pub fn await_log(&self, text: &str) -> Result<()> {
        until_true(&format!("{text:?} in the log"), PATIENCE, || {
            Ok(self.logged()?.contains(text))
        })
    }

    /// Waits for its end, which must have this exit code, and gives its log.
    pub fn exits(&self, code: i32) -> Result<String> {
        let status = self.ended()?;
        let logged = self.logged()?;
        anyhow::ensure!(
            status.exit_code == code,
            "exit code {code} was expected: {status}\n{logged}"
        );
        Ok(logged)
    }

    fn does(&self, method: &str) -> Result<()> {
        let answer: Result<Empty> = self.cri().runtime(method, &self.request());
        answer.map(|_| ())
    }

    fn request(&self) -> ContainerId {
        ContainerId {
            container_id: self.id.clone(),
            ..Default::default()
        }
    }

    fn cri(&self) -> &'c Cri<'h> {
        self.pod.cri
    }
}
