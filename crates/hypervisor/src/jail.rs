//! The walls around a virtual machine monitor on the host: a root of its own
//! with read-only views of the few trees it needs, its own namespaces, an
//! unprivileged user without capabilities, and nothing inherited but the
//! descriptors meant for it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use casemate_linux::{
    capability, descriptor,
    mount::{attach, attr, clone_tree, set_attributes},
    process::{self, Birth, Child, Namespaces},
};
use nix::{
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::setns,
    sys::{
        prctl::set_no_new_privs,
        resource::{Resource, getrlimit, setrlimit},
        signal::SigSet,
        stat::{Mode, umask},
    },
    unistd::{
        Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, pipe2, pivot_root, setgroups,
        sethostname, setresgid, setresuid, write,
    },
};

use crate::Identity;

/// A program and all that it may see and hold.
pub(crate) struct Jail {
    /// The program's path inside the jail.
    pub(crate) program: PathBuf,
    /// Its arguments, the first of which is its name.
    pub(crate) arguments: Vec<OsString>,
    /// Its whole environment, as `NAME=value`.
    pub(crate) environment: Vec<OsString>,
    /// What is mounted in its root.
    pub(crate) binds: Vec<Bind>,
    /// Its memory: a file system of its own, mounted nowhere yet, that the root
    /// shows as [`MEMORY`].
    pub(crate) memory: Option<OwnedFd>,
    /// Its other open descriptors.
    pub(crate) descriptors: Descriptors,
    /// Its standard output and error.
    pub(crate) output: OwnedFd,
    /// Network namespace to enter; without one, a new and empty one.
    pub(crate) netns: Option<OwnedFd>,
    /// Whom it runs as.
    pub(crate) identity: Identity,
    /// Its only supplementary group.
    pub(crate) supplementary_group: Option<u32>,
}

/// Descriptors that a program inherits, numbered from 3 on.
#[derive(Default)]
pub(crate) struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    const FIRST: RawFd = 3;

    /// Adds one; returns the number that it has for the program.
    pub(crate) fn push(&mut self, descriptor: OwnedFd) -> RawFd {
        self.0.push(descriptor);
        self.end() - 1
    }

    /// The number after the last one.
    fn end(&self) -> RawFd {
        Self::FIRST + self.0.len() as RawFd
    }
}

/// Something of the host that is visible in the jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    /// On the host.
    pub(crate) source: PathBuf,
    /// In the jail.
    pub(crate) target: PathBuf,
    /// What it is for.
    pub(crate) kind: BindKind,
}

/// What a bind mount allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BindKind {
    /// Programs and libraries: read and execute.
    Programs,
    /// Data: read only.
    Data,
    /// A device node: read and write.
    Device,
}

/// Why the child could not become the program.
pub(crate) struct Failure {
    /// What it was doing.
    pub(crate) step: String,
    /// The reason.
    pub(crate) source: io::Error,
}

/// Where a program finds its memory.
pub(crate) const MEMORY: &str = "/memory";

/// Most open files of the program: some dozens for each device.
const MAX_OPEN_FILES: u64 = 4096;

/// Where the new root is put together. Any directory would do, since the mount
/// namespace is the child's own; this one exists on every host.
const WORKPLACE: &str = "/proc";

/// Starts the program. The pipe tells by [`read_failure`] why the child could
/// not become the program, and nothing once it has.
pub(crate) fn start(jail: &Jail) -> io::Result<(Child, OwnedFd)> {
    let (report, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let mut namespaces = Namespaces::CLONE_NEWNS
        | Namespaces::CLONE_NEWPID
        | Namespaces::CLONE_NEWIPC
        | Namespaces::CLONE_NEWUTS
        | Namespaces::CLONE_NEWCGROUP;
    if jail.netns.is_none() {
        namespaces |= Namespaces::CLONE_NEWNET;
    }
    let birth = Birth {
        namespaces: Some(namespaces),
        cgroup: None,
    };
    let child = process::spawn(birth, || {
        let Ok(held) = take_descriptors(jail, &writer) else {
            return 1;
        };
        let Err(failure) = become_program(jail, &held);
        let errno = failure.source.raw_os_error().unwrap_or(0);
        let line = format!("{errno} {}", failure.step);
        i32::from(write(&held.report, line.as_bytes()).is_ok())
    })?;
    Ok((child, report))
}

/// What the child wrote before it gave up, if it did.
pub(crate) fn read_failure(report: &[u8]) -> Option<Failure> {
    let report = String::from_utf8_lossy(report);
    let (errno, step) = report.split_once(' ')?;
    Some(Failure {
        step: step.to_owned(),
        source: io::Error::from_raw_os_error(errno.parse().ok()?),
    })
}

/// The child's own descriptors, behind those of the program; exec closes them.
struct Held {
    report: OwnedFd,
    netns: Option<OwnedFd>,
    memory: Option<OwnedFd>,
}

/// First of all, so that nothing of the parent stays within reach.
fn take_descriptors(jail: &Jail, report: &OwnedFd) -> io::Result<Held> {
    // Dropped at once: what is still owned below must not be closed by number.
    dup2_stdin(File::open("/dev/null")?)?;
    dup2_stdout(&jail.output)?;
    dup2_stderr(&jail.output)?;
    let mut all: Vec<BorrowedFd<'_>> = jail.descriptors.0.iter().map(AsFd::as_fd).collect();
    all.push(report.as_fd());
    all.extend(jail.netns.iter().map(AsFd::as_fd));
    all.extend(jail.memory.iter().map(AsFd::as_fd));
    descriptor::arrange_for_exec(&all)?;
    let mut numbers = jail.descriptors.end()..;
    let mut next = || descriptor::inherited(numbers.next().unwrap_or_default());
    Ok(Held {
        report: next()?,
        netns: jail.netns.as_ref().map(|_| next()).transpose()?,
        memory: jail.memory.as_ref().map(|_| next()).transpose()?,
    })
}

fn become_program(jail: &Jail, held: &Held) -> Result<std::convert::Infallible, Failure> {
    if let Some(netns) = &held.netns {
        let entered = setns(netns, Namespaces::CLONE_NEWNET);
        entered.during("entering the network namespace")?;
    }
    build_root(&jail.binds, held.memory.as_ref())?;
    sethostname("vmm").during("naming the jail")?;
    umask(Mode::from_bits_truncate(0o077));
    limit_resources().during("limiting resources")?;
    drop_privileges(jail.identity, jail.supplementary_group).during("dropping privileges")?;
    SigSet::empty()
        .thread_set_mask()
        .during("unblocking signals")?;
    // The parent is in another PID namespace and therefore seen as 0.
    process::die_with_parent(0).during("tying the process to its parent")?;
    parent_is_alive(&held.report).during("looking for the parent")?;
    let bytes = |list: &[OsString]| {
        list.iter()
            .cloned()
            .map(OsString::into_vec)
            .collect::<Vec<_>>()
    };
    process::exec(
        jail.program.as_os_str().as_encoded_bytes(),
        &bytes(&jail.arguments),
        &bytes(&jail.environment),
    )
    .during(&format!("executing {}", jail.program.display()))
}

/// A parent that ended before it could take its child along has left the pipe
/// without a reader.
fn parent_is_alive(report: &OwnedFd) -> io::Result<()> {
    let mut ends = [PollFd::new(report.as_fd(), PollFlags::empty())];
    match poll(&mut ends, PollTimeout::ZERO)? {
        0 => Ok(()),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// A small tmpfs with the bind mounts becomes the root, read-only; the host's
/// tree is unmounted.
fn build_root(binds: &[Bind], memory: Option<&OwnedFd>) -> Result<(), Failure> {
    let nothing = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing).during("making mounts private")?;
    // Copied before the workplace hides anything.
    let mut trees = Vec::with_capacity(binds.len());
    for bind in binds {
        let tree = clone_tree(&bind.source, true);
        trees.push(tree.during(&format!("opening {}", bind.source.display()))?);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some("mode=0755,size=64k,nr_inodes=64");
    mount(Some("casemate"), WORKPLACE, Some("tmpfs"), flags, options).during("mounting a root")?;
    chdir(WORKPLACE).during("entering the root")?;
    for (bind, tree) in binds.iter().zip(trees) {
        attach_bind(bind, tree).during(&format!("showing {}", bind.source.display()))?;
    }
    if let Some(memory) = memory {
        attach_memory(memory).during("showing the memory")?;
    }
    pivot_root(".", ".").during("changing the root")?;
    umount2(".", MntFlags::MNT_DETACH).during("leaving the host's root")?;
    chdir("/").during("entering the root")?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(nothing, "/", nothing, read_only, nothing).during("making the root read-only")
}

fn attach_bind(bind: &Bind, tree: OwnedFd) -> io::Result<()> {
    let tree = File::from(tree);
    let target = bind.target.strip_prefix("/").unwrap_or(&bind.target);
    if tree.metadata()?.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        fs::create_dir_all(target.parent().unwrap_or(Path::new(".")))?;
        File::create(target)?;
    }
    let attributes = attr::NOSUID
        | match bind.kind {
            BindKind::Programs => attr::RDONLY | attr::NODEV,
            BindKind::Data => attr::RDONLY | attr::NODEV | attr::NOEXEC,
            BindKind::Device => attr::NOEXEC,
        };
    set_attributes(tree.as_fd(), attributes, 0, MsFlags::empty(), true)?;
    let place = open(target, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    attach(tree.as_fd(), place.as_fd())
}

fn attach_memory(memory: &OwnedFd) -> io::Result<()> {
    let target = MEMORY.trim_start_matches('/');
    fs::create_dir(target)?;
    let place = open(target, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    attach(memory.as_fd(), place.as_fd())
}

fn limit_resources() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = MAX_OPEN_FILES.min(most);
    setrlimit(Resource::RLIMIT_NOFILE, files, files)
}

fn drop_privileges(identity: Identity, supplementary_group: Option<u32>) -> io::Result<()> {
    capability::limit_bounding(0)?;
    capability::set_ambient(0)?;
    let groups: Vec<Gid> = supplementary_group.map(Gid::from_raw).into_iter().collect();
    setgroups(&groups)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    capability::set(capability::Sets::default())?;
    Ok(set_no_new_privs()?)
}

/// Names the step that failed.
trait During<T> {
    fn during(self, step: &str) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, step: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            step: step.to_owned(),
            source: error.into(),
        })
    }
}
