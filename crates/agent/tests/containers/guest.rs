//! An agent to talk to, and what the tests ask of it again and again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use casemate_protocol::{
    agent::{
        AddProcessRequest, Capabilities, Cgroup, ContainerRef, ContainerSpec,
        CreateContainerRequest, DeviceRule, HelloRequest, Mount, Namespace, PrepareSandboxRequest,
        Process, ProcessRef, Streams, WaitProcessResponse, namespace::Kind,
    },
    agent_ttrpc::AgentClient,
    stream::{self, Stream, StreamHello},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};
use ttrpc::{
    Code,
    asynchronous::{Client, transport::Socket},
    context,
};

/// Longest that anything in a test may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A running agent in namespaces of its own; all of it goes with the value.
pub(crate) struct Guest {
    pub(crate) agent: AgentClient,
    pub(crate) directory: tempfile::TempDir,
    /// Where the agent calls.
    listener: UnixListener,
    process: Child,
    cgroup: PathBuf,
}

/// Starts the agent in a cgroup that is the root of its cgroup namespace. The
/// agent itself must be below that: no cgroup with controllers has processes
/// and children.
const ENTER: &str = r#"
set -e
echo $$ > "$CGROUP/cgroup.procs"
exec unshare --cgroup sh -ec '
    echo $$ > "$CGROUP/agent/cgroup.procs"
    exec unshare --mount --pid --fork --kill-child --ipc --uts --net --propagation private sh -ec "
        mount -t tmpfs tmpfs /run
        mount -t proc proc /proc
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        exec \"$AGENT\" --sockets \"$DIRECTORY\"
    "
'
"#;

impl Guest {
    /// A greeted agent of a prepared sandbox; `None`, with the reason printed,
    /// where none can run.
    pub(crate) async fn start() -> Option<Self> {
        let guest = Self::boot().await?;
        guest.hello().await;
        let request = PrepareSandboxRequest {
            sandbox_id: "sandbox".into(),
            hostname: "guest".into(),
            entropy: vec![7; 32],
            ..Default::default()
        };
        guest
            .agent
            .prepare_sandbox(limit(), &request)
            .await
            .unwrap();
        Some(guest)
    }

    /// An agent that has not been greeted.
    pub(crate) async fn boot() -> Option<Self> {
        let hierarchy = requirements()
            .inspect_err(|reason| println!("skipped: {reason}"))
            .ok()?;
        let directory = tempfile::tempdir().unwrap();
        make_rootfs(&directory.path().join("rootfs"));
        let cgroup = hierarchy.join(format!(
            "casemate-test-{}",
            directory.path().file_name().unwrap().to_string_lossy()
        ));
        fs::create_dir_all(cgroup.join("agent")).unwrap();
        let listener = UnixListener::bind(directory.path().join("control")).unwrap();
        let process = Command::new("sh")
            .args(["-c", ENTER])
            .env("CGROUP", &cgroup)
            .env("DIRECTORY", directory.path())
            .env("AGENT", env!("CARGO_BIN_EXE_casemate-agent"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self {
            agent: called(&listener).await,
            directory,
            listener,
            process,
            cgroup,
        })
    }

    /// Takes the agent's next call; whatever connection there was is given up.
    pub(crate) async fn called_again(&mut self) {
        self.agent = called(&self.listener).await;
    }

    pub(crate) async fn hello(&self) {
        let request = HelloRequest {
            min_version: 1,
            max_version: 1,
            ..Default::default()
        };
        self.agent.hello(limit(), &request).await.unwrap();
    }

    /// The root file system that containers get by default.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// A container that runs a shell script, as podman or docker would have it.
    pub(crate) fn spec(&self, script: &str) -> ContainerSpec {
        ContainerSpec {
            process: Some(shell(script)).into(),
            streams: Some(outputs()).into(),
            rootfs: self.rootfs().to_str().unwrap().into(),
            mounts: usual_mounts(),
            namespaces: [Kind::PID, Kind::MOUNT, Kind::IPC, Kind::UTS, Kind::CGROUP]
                .map(own)
                .to_vec(),
            hostname: "box".into(),
            masked_paths: [
                "/proc/interrupts",
                "/proc/acpi",
                "/proc/none",
                "/sys/firmware",
            ]
            .map(String::from)
            .to_vec(),
            readonly_paths: ["/proc/sys", "/proc/none"].map(String::from).to_vec(),
            cgroup: Some(Cgroup {
                path: "pod/box".into(),
                device_rules: usual_devices(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    pub(crate) async fn create(&self, id: &str, spec: ContainerSpec) -> ttrpc::Result<u32> {
        let request = CreateContainerRequest {
            container_id: id.into(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        let created = self.agent.create_container(limit(), &request).await?;
        Ok(created.pid)
    }

    pub(crate) async fn start_process(&self, id: &str, exec: &str) -> ttrpc::Result<()> {
        self.agent
            .start_process(limit(), &reference(id, exec))
            .await
            .map(drop)
    }

    pub(crate) async fn wait(&self, id: &str, exec: &str) -> WaitProcessResponse {
        self.agent
            .wait_process(limit(), &reference(id, exec))
            .await
            .unwrap()
    }

    pub(crate) async fn remove(&self, id: &str) -> ttrpc::Result<()> {
        let request = ContainerRef {
            container_id: id.into(),
            ..Default::default()
        };
        self.agent
            .remove_container(limit(), &request)
            .await
            .map(drop)
    }

    pub(crate) async fn add(
        &self,
        id: &str,
        exec: &str,
        process: Process,
        streams: Streams,
    ) -> ttrpc::Result<u32> {
        let request = AddProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            process: Some(process).into(),
            streams: Some(streams).into(),
            ..Default::default()
        };
        Ok(self.agent.add_process(limit(), &request).await?.pid)
    }

    /// Runs a container to its end: exit status, standard output, error.
    pub(crate) async fn run(&self, spec: ContainerSpec) -> (u32, String, String) {
        self.create("run", spec).await.unwrap();
        let ended = self.run_created("run", "").await;
        self.remove("run").await.unwrap();
        ended
    }

    /// Runs an added process to its end.
    pub(crate) async fn exec(&self, id: &str, process: Process) -> (u32, String, String) {
        self.add(id, "exec", process, outputs()).await.unwrap();
        let ended = self.run_created(id, "exec").await;
        let request = reference(id, "exec");
        self.agent.remove_process(limit(), &request).await.unwrap();
        ended
    }

    /// Runs a process that waits for its start to its end.
    pub(crate) async fn run_created(&self, id: &str, exec: &str) -> (u32, String, String) {
        let stdout = self.stream(id, exec, Stream::STDOUT).await.unwrap();
        let stderr = self.stream(id, exec, Stream::STDERR).await.unwrap();
        self.start_process(id, exec).await.unwrap();
        let (stdout, stderr) = tokio::join!(read_all(stdout), read_all(stderr));
        let status = self.wait(id, exec).await.exit_status;
        (status, stdout, stderr)
    }

    /// Attaches a stream.
    pub(crate) async fn stream(
        &self,
        id: &str,
        exec: &str,
        which: Stream,
    ) -> Result<UnixStream, stream::Error> {
        let path = self.directory.path().join("streams");
        let mut connection = UnixStream::connect(path).await?;
        let hello = StreamHello {
            container_id: id.into(),
            exec_id: exec.into(),
            stream: which.into(),
            ..Default::default()
        };
        within(stream::request(&mut connection, &hello)).await?;
        Ok(connection)
    }

    /// A process in the agent's network namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The agent's cgroup root, seen from outside.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Waits for the agent's own end.
    pub(crate) async fn ended(&mut self) {
        within(async {
            while self.process.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // unshare --kill-child takes the namespaces' PID 1 along.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        for _ in 0..100 {
            remove_cgroups(&self.cgroup);
            if !self.cgroup.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("left behind: {}", self.cgroup.display());
    }
}

fn remove_cgroups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// Where cgroup v2 is mounted.
fn requirements() -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("containers need root".into());
    }
    let mounts = fs::read_to_string("/proc/mounts").map_err(|error| error.to_string())?;
    let hierarchy = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup2")
        .ok_or("cgroup v2 is not mounted")?;
    if busybox().is_none() {
        return Err("busybox is not installed".into());
    }
    Ok(hierarchy[1].into())
}

fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

fn make_rootfs(root: &Path) {
    for directory in ["bin", "etc", "tmp", "proc", "root"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(busybox().unwrap(), root.join("bin/busybox")).unwrap();
    let list = Command::new(busybox().unwrap())
        .arg("--list")
        .output()
        .unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines() {
        if applet != "busybox" {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
}

/// Code and text of a refusal.
pub(crate) fn status(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("{other}"),
    }
}

/// No longer than the limit.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

pub(crate) fn limit() -> context::Context {
    context::with_duration(LIMIT)
}

/// Everything that comes until the other side's half-close.
pub(crate) async fn read_all(mut connection: UnixStream) -> String {
    let mut text = Vec::new();
    within(connection.read_to_end(&mut text)).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// Sends everything and closes.
pub(crate) async fn write_all(mut connection: UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    connection.write_all(bytes).await?;
    connection.shutdown().await
}

pub(crate) fn reference(id: &str, exec: &str) -> ProcessRef {
    ProcessRef {
        container_id: id.into(),
        exec_id: exec.into(),
        ..Default::default()
    }
}

/// Standard output and error.
pub(crate) fn outputs() -> Streams {
    Streams {
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

pub(crate) fn own(kind: Kind) -> Namespace {
    Namespace {
        kind: kind.into(),
        ..Default::default()
    }
}

pub(crate) fn of(kind: Kind, container: &str) -> Namespace {
    Namespace {
        kind: kind.into(),
        of_container: container.into(),
        ..Default::default()
    }
}

async fn called(listener: &UnixListener) -> AgentClient {
    let (connection, _) = within(listener.accept()).await.unwrap();
    AgentClient::new(Client::new(Socket::new(connection)))
}

pub(crate) fn command(args: &[&str]) -> Process {
    // docker's default set.
    let capabilities = 0xa80425fb;
    Process {
        args: args.iter().map(|arg| (*arg).into()).collect(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        capabilities: Some(Capabilities {
            bounding: capabilities,
            effective: capabilities,
            permitted: capabilities,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

pub(crate) fn shell(script: &str) -> Process {
    command(&["sh", "-c", script])
}

pub(crate) fn mount(fstype: &str, destination: &str, flags: u64, data: &str) -> Mount {
    Mount {
        fstype: fstype.into(),
        source: fstype.into(),
        destination: destination.into(),
        flags,
        data: data.into(),
        ..Default::default()
    }
}

pub(crate) fn bind(source: &Path, destination: &str, flags: u64) -> Mount {
    Mount {
        fstype: "bind".into(),
        source: source.to_str().unwrap().into(),
        destination: destination.into(),
        flags: flags | libc::MS_BIND | libc::MS_REC,
        source_is_file: source.is_file(),
        ..Default::default()
    }
}

fn usual_mounts() -> Vec<Mount> {
    let strict = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    vec![
        mount("proc", "/proc", strict, ""),
        mount("tmpfs", "/dev", libc::MS_NOSUID, "mode=755,size=65536k"),
        mount(
            "devpts",
            "/dev/pts",
            libc::MS_NOSUID | libc::MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount("sysfs", "/sys", strict | libc::MS_RDONLY, ""),
        mount("mqueue", "/dev/mqueue", strict, ""),
        mount("tmpfs", "/dev/shm", strict, "mode=1777,size=64k"),
        mount("cgroup", "/sys/fs/cgroup", strict | libc::MS_RDONLY, ""),
    ]
}

fn usual_devices() -> Vec<DeviceRule> {
    let rule = |allow, kind: &str, major, minor, access: &str| DeviceRule {
        allow,
        kind: kind.into(),
        major,
        minor,
        access: access.into(),
        ..Default::default()
    };
    vec![
        rule(false, "a", None, None, "rwm"),
        rule(true, "c", None, None, "m"),
        rule(true, "b", None, None, "m"),
        rule(true, "c", Some(1), Some(3), "rwm"),
        rule(true, "c", Some(1), Some(5), "rwm"),
        rule(true, "c", Some(1), Some(8), "rwm"),
        rule(true, "c", Some(1), Some(9), "rwm"),
        rule(true, "c", Some(5), Some(0), "rwm"),
        rule(true, "c", Some(5), Some(2), "rwm"),
        rule(true, "c", Some(136), None, "rwm"),
    ]
}
