//! A start, a run and an end of two containers in which one step fails, for
//! every step: nothing may be left on the host, and nobody may wait for ever.
//!
//! The hypervisor is `casemate_hypervisor::fake`, the agent is the one below,
//! the device process is this program under the verb that the sandbox gives it.
//! A sandbox changes its process for good (mount namespace), so every case runs
//! in a process of its own: this program with `--case`.

mod agent;
mod templates;

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use agent::{FakeAgent, call_the_host};
use casemate_config::Config;
use casemate_hypervisor::fake::Fake;
use casemate_linux::{socket::send_with_descriptors, view::View};
use casemate_sandbox::{
    Client, Create, Error, Handle, Id, Key, Options, Stop, layout,
    ledger::Ledger,
    rootfs::RootMount,
    stand_in::{Announcement, Attachment, receive},
    state::{State, Status},
    timeline::Timeline,
};
use templates::FIRST_TRIAL;
use tokio::{net::UnixStream, task::LocalSet, time::timeout};

/// Exit codes of one case.
const CLEAN: u8 = 0;
const NOT_REACHED: u8 = 3;

/// No case may take longer: a step that fails must not be waited for.
const LIMIT: Duration = Duration::from_secs(20);

/// More steps than there are.
const MANY: u32 = 80;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[1..] {
        ["devices", ..] => loop {
            nix::unistd::pause();
        },
        // What a start without a template leaves behind.
        ["--log", _, "template-maker"] => ExitCode::SUCCESS,
        ["--case", part, step] => case(part, step.parse().expect("a number")),
        _ => all_cases(),
    }
}

/// Which part fails; with "clone", when a template is there, and with "maker", when
/// it is made; with "retried", after the first clone on trial did not call.
const PARTS: [&str; 7] = [
    "hypervisor",
    "agent",
    "clone-hypervisor",
    "clone-agent",
    "maker-hypervisor",
    "maker-agent",
    "maker-retried-agent",
];

/// Every step of every part, until one is not reached any more.
fn all_cases() -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        println!(
            "test result: ok. 0 passed; 0 failed; {} ignored; skipped: needs root",
            PARTS.len()
        );
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for part in PARTS {
        let verdict = cases_of(part);
        match &verdict {
            Ok(steps) => println!("test {part}_fails_at_each_of_{steps}_steps ... ok"),
            Err(text) => println!("test {part}_fails_at_each_step ... FAILED\n{text}"),
        }
        failed += u32::from(verdict.is_err());
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {failed} failed; 0 ignored",
        PARTS.len() as u32 - failed
    );
    ExitCode::from(u8::from(failed > 0))
}

fn cases_of(part: &str) -> Result<u32, String> {
    for step in 1..MANY {
        let mut command = Command::new("/proc/self/exe");
        let output = command.args(["--case", part, &step.to_string()]).output();
        let output = output.map_err(|error| error.to_string())?;
        match output.status.code() {
            Some(code) if code == i32::from(CLEAN) => {}
            Some(code) if code == i32::from(NOT_REACHED) && step > 1 => return Ok(step - 1),
            _ => {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(format!("step {step}: {}\n{said}", output.status));
            }
        }
    }
    Err(format!("no end after {MANY} steps"))
}

/// One life of a sandbox in which step `step` of `part` fails.
fn case(part: &str, step: u32) -> ExitCode {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (hypervisor, agent) = match part {
        "maker-retried-agent" => (Fake::new(), FakeAgent::failing_at(&[FIRST_TRIAL, step])),
        _ if part.ends_with("hypervisor") => (Fake::failing_at(step), FakeAgent::failing_at(&[])),
        _ => (Fake::new(), FakeAgent::failing_at(&[step])),
    };
    let hypervisor = Rc::new(hypervisor);
    let agent = Arc::new(agent);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let yard = Yard::new();
    let house = House {
        folder: folder.path(),
        stand_in: yard.resident.id(),
    };
    let life = async {
        if part.starts_with("maker") {
            return templates::make(house, &*hypervisor, Arc::clone(&agent)).await;
        }
        if part.starts_with("clone") {
            let sound = Arc::new(FakeAgent::failing_at(&[]));
            let made = templates::make(house, &Fake::new(), sound).await;
            made.expect("a template can be made");
        }
        live(house, Rc::clone(&hypervisor), Arc::clone(&agent)).await
    };
    let lived = LocalSet::new().block_on(&runtime, async { timeout(LIMIT, life).await });
    let lived = lived.expect("the sandbox ended in time");
    drop(runtime);
    assert_nothing_left(house);
    yard.assert_as_it_was();
    let reached = match part.ends_with("hypervisor") {
        true => hypervisor.steps() >= step,
        false => agent.taken.load(Ordering::Relaxed) >= step,
    };
    if !reached || templates::cannot_matter(part, step) {
        lived.expect("nothing has failed that matters");
    } else if templates::is_second_trial(part, step) {
        let error = lived.expect_err("no clone has come up");
        assert!(error.starts_with("no clone of what was saved"), "{error}");
    }
    ExitCode::from(if reached { CLEAN } else { NOT_REACHED })
}

/// Where a sandbox lives.
#[derive(Clone, Copy)]
struct House<'a> {
    folder: &'a Path,
    /// The process that all stand-ins are.
    stand_in: u32,
}

async fn live(house: House<'_>, hypervisor: Rc<Fake>, agent: Arc<FakeAgent>) -> Result<(), String> {
    let root = house.folder.join("root");
    fs::create_dir_all(root.join("web")).expect("directory");
    let directory = layout::make_sandbox(&root.join("web")).expect("directory");
    let options = Options {
        id: Id::new("web").expect("an id"),
        directory: directory.clone(),
        root: root.clone(),
        netns: Some(Yard::path()),
        cgroup: None,
        hostname: "web".into(),
        config: config(house),
        client: Client::CommandLine,
        pod: None,
        templates: Some(templates::used()),
    };
    let opened = casemate_sandbox::open(options, hypervisor, Timeline::default());
    let (handle, owner) = opened.expect("the sandbox opens");
    let owner = tokio::task::spawn_local(owner);
    let calls = tokio::task::spawn_local(call_the_host(directory.clone(), agent));
    let mut stand_ins = Vec::new();
    // Any of these may fail; none may hang.
    let lived = two_lives(&handle, house, &directory, &mut stand_ins).await;
    let _ = handle.stop(Stop::Now).await;
    owner.await.expect("the owner does not panic");
    calls.abort();
    for stand_in in stand_ins {
        assert_dismissed(stand_in).await;
    }
    assert!(!directory.exists(), "the sandbox's directory is left");
    clean_up(&root);
    lived.map_err(|error| error.to_string())
}

fn config(house: House<'_>) -> Config {
    let mut config = Config::default();
    config.vmm.boot_timeout_s = 1;
    config.agent.timeout_s = 3;
    config.template.directory = house.folder.join("t");
    let file = house.folder.join("file");
    // One that is written again is another one to who looks for a template.
    if !file.exists() {
        fs::write(&file, "of the guest").expect("file");
    }
    config.guest.kernel.clone_from(&file);
    config.guest.initrd = file;
    config
}

/// What `delete` does of a container whose sandbox has gone.
fn clean_up(root: &Path) {
    for entry in fs::read_dir(root).expect("the root").flatten() {
        let directory = entry.path();
        if let Ok(state) = State::load(&directory) {
            assert_eq!(state.status, Status::Stopped, "{}", directory.display());
        }
        Ledger::undo(&directory).expect("nothing is left of a container");
    }
}

/// A network namespace with one interface, which outlives the sandbox, and a
/// process in it, which all stand-ins are.
struct Yard {
    resident: Child,
}

impl Yard {
    fn new() -> Self {
        let name = Self::name();
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "add", "eth0", "type", "bridge"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        let resident = Command::new("ip")
            .args(["netns", "exec", &name, "sleep", "1000"])
            .spawn();
        let resident = resident.expect("ip runs");
        let entered = || {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
            of(&resident.id().to_string()) != of("self")
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !entered() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { resident }
    }

    fn name() -> String {
        format!("faults{}", std::process::id())
    }

    fn path() -> PathBuf {
        Path::new("/run/netns").join(Self::name())
    }

    /// Without taps and redirects.
    fn assert_as_it_was(&self) {
        let told = Command::new("tc")
            .args(["-n", &Self::name(), "qdisc"])
            .output();
        let told = String::from_utf8(told.expect("tc runs").stdout).expect("text");
        assert!(!told.contains("ingress"), "a redirect is left:\n{told}");
        assert!(!told.contains("cmtap"), "a tap is left:\n{told}");
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        let _ = self.resident.kill();
        let _ = self.resident.wait();
        ip(&["netns", "del", &Self::name()]);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(status.expect("ip runs").success(), "{arguments:?}");
}

/// One container, another in its namespaces that lives on when the first is
/// deleted.
async fn two_lives(
    handle: &Handle,
    house: House<'_>,
    sandbox: &Path,
    stand_ins: &mut Vec<UnixStream>,
) -> Result<(), Error> {
    let root = house.folder.join("root");
    let first = create(handle, house, "web", stand_ins).await?;
    handle.start(first.clone()).await?;
    let joins = |name: &str| {
        fs::create_dir(root.join(name)).expect("directory");
        layout::join_sandbox(&root.join(name), sandbox).expect("link");
    };
    joins("side");
    let second = create(handle, house, "side", stand_ins).await?;
    handle.start(second.clone()).await?;
    // Its creator was killed, and `delete --force` found nothing to ask for.
    joins("lost");
    let lost = create(handle, house, "lost", stand_ins).await?;
    fs::remove_dir_all(root.join("lost")).expect("directory");
    handle.signal(lost.clone(), 9, true).await?;
    // It may have gone before it is asked about.
    if let Ok(exit) = handle.wait(lost.clone()).await {
        assert_eq!(exit.code, 137);
    }
    assert!(handle.state(lost).await.is_err(), "nobody will delete it");
    end(handle, first).await?;
    assert!(!root.join("web").exists() && root.join("side").exists());
    handle.stop(Stop::Without(Id::new("web")?)).await?;
    if handle.state(second.clone()).await?.status != Status::Running {
        return Err(Error::NotFound);
    }
    end(handle, second).await?;
    assert!(!root.join("side").exists());
    Ok(())
}

async fn create(
    handle: &Handle,
    house: House<'_>,
    name: &str,
    stand_ins: &mut Vec<UnixStream>,
) -> Result<Key, Error> {
    let (attachment, stand_in) = attachment(house, name).await;
    handle.attach(attachment).await?;
    stand_ins.push(stand_in);
    let id = Id::new(name)?;
    let create = Create {
        id: id.clone(),
        bundle: bundle(house, name),
        rootfs: rootfs(house, name),
        split: None,
    };
    handle.create(create).await?;
    Ok(Key::init(id))
}

async fn end(handle: &Handle, key: Key) -> Result<(), Error> {
    handle.signal(key.clone(), 9, true).await?;
    assert_eq!(handle.wait(key.clone()).await?.code, 137);
    handle.delete(key, false).await?;
    Ok(())
}

/// A bundle whose program nobody runs. That of any but the first is in the
/// namespaces of the first.
fn bundle(house: House<'_>, name: &str) -> PathBuf {
    let bundle = house.folder.join(format!("bundle-{name}"));
    fs::create_dir_all(bundle.join("rootfs")).expect("rootfs");
    fs::write(bundle.join("rootfs/precious"), "data").expect("file");
    let mut spec = serde_json::to_value(oci_spec::runtime::Spec::default()).expect("JSON");
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    for namespace in namespaces.into_iter().flatten() {
        let file = match namespace["type"].as_str() {
            Some("network") => "net",
            Some("ipc") => "ipc",
            _ => continue,
        };
        if name != "web" {
            let path = format!("/proc/{}/ns/{file}", house.stand_in);
            namespace["path"] = path.into();
        }
    }
    let file = fs::File::create(bundle.join("config.json")).expect("config.json");
    serde_json::to_writer(file, &spec).expect("config.json");
    bundle
}

/// The root file system of any but the first is on a disk.
fn rootfs(house: House<'_>, name: &str) -> Vec<RootMount> {
    if name == "web" {
        return Vec::new();
    }
    let image = house.folder.join(format!("image-{name}"));
    fs::File::create(&image).expect("image");
    vec![RootMount {
        fstype: "ext4".into(),
        source: image,
        options: vec!["loop".into()],
        ..RootMount::default()
    }]
}

/// A stand-in without a process: its end of the control socket.
async fn attachment(house: House<'_>, container: &str) -> (Attachment, UnixStream) {
    let (client, monitor) = UnixStream::pair().expect("socket pair");
    let (control, stand_in) = UnixStream::pair().expect("socket pair");
    let announcement = Announcement {
        container: container.into(),
        exec: None,
        pid: house.stand_in,
        is_caller: false,
        streams: [false; 3],
    };
    let line = serde_json::to_vec(&announcement).expect("plain data");
    let view = View::own().expect("the mount namespace");
    let [namespace, root] = view.descriptors();
    let descriptors = [control.as_fd(), namespace, root];
    send_with_descriptors(client.as_fd(), &line, &descriptors).expect("sent");
    let attachment = receive(&monitor).await.expect("an announcement");
    (attachment, stand_in)
}

/// The stand-in is told a status, or sees that the monitor is gone.
async fn assert_dismissed(stand_in: UnixStream) {
    stand_in
        .readable()
        .await
        .expect("the stand-in hears something");
}

/// No directory, no mount, no process; and the user's files are still there.
fn assert_nothing_left(house: House<'_>) {
    let folder = house.folder;
    templates::assert_nothing_half_made(house);
    let left = fs::read_dir(folder.join("root")).expect("the root").count();
    assert_eq!(left, 0, "directories are left");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
    let name = folder.to_str().expect("a plain path");
    assert!(!mounts.contains(name), "a mount is left:\n{mounts}");
    // One that was killed a moment ago may still be on its way out.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !living_children(house).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let alive = living_children(house);
    assert!(alive.is_empty(), "processes are left: {alive:?}");
    let precious = fs::read_to_string(folder.join("bundle-web/rootfs/precious"));
    assert_eq!(precious.expect("the user's file"), "data");
}

/// Those beside the stand-in.
fn living_children(house: House<'_>) -> Vec<String> {
    let me = std::process::id();
    let children = fs::read_to_string(format!("/proc/self/task/{me}/children")).expect("children");
    let alive = children.split_whitespace().filter(|pid| {
        let pid = pid.parse().expect("a pid");
        pid != house.stand_in && casemate_sandbox::ledger::start_time(pid).is_some()
    });
    alive.map(str::to_owned).collect()
}
