//! Setting up a container from inside: the first process, before exec.

use std::path::Path;

use casemate_linux::{interface, keyring};
use casemate_protocol::agent::ContainerSpec;
use nix::{
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, setgroups, sethostname, setresgid, setresuid, setsid},
};

use super::{
    Hooks, Prepared, Work, credentials, devices, masks,
    mounts::{self, Sources},
    namespaces::Plan,
    program::Program,
    root::Root,
    sysctl, terminal,
};
use crate::{
    boot::CONTAINER_ROOT,
    container::stdio::ProcessEnds,
    error::{Doing, Result},
    timeline::Timeline,
};

/// Makes the calling process the first of a container, up to its exec.
pub(crate) fn set_up<'a>(
    id: &str,
    spec: &'a ContainerSpec,
    plan: &Plan,
    ends: &ProcessEnds,
    cgroup: &Path,
    born: u64,
) -> Result<Prepared<'a>> {
    let mut timeline = Timeline::since(born);
    enter_namespaces(id, plan)?;
    timeline.mark("namespaces");

    // While it is still the guest's root who asks: paths to the sources may
    // be closed to the root of a user namespace.
    let sources = Sources::open(spec, plan, cgroup)?;
    if plan.has_user() {
        become_root()?;
    }
    umask(Mode::empty());
    let root = Root::attach(sources.rootfs, CONTAINER_ROOT)?;
    timeline.mark("rootfs");

    let read_only_later = mounts::mount_all(&root, &spec.mounts, sources.bound)?;
    timeline.mark("mounts");

    if !mounts::dev_is_bound(&spec.mounts) {
        devices::make_all(&root, &spec.devices, plan.has_user())?;
    }
    let terminal = match ends {
        ProcessEnds::Files(files) => {
            terminal::use_files(files)?;
            None
        }
        ProcessEnds::Terminal => Some(terminal::make(&root, &spec.process, true)?),
    };
    names(spec)?;
    sysctl::write_all(&spec.sysctls)?;
    masks::hide(&root, &spec.masked_paths)?;
    masks::make_read_only(&root, &spec.readonly_paths)?;
    timeline.mark("devices");

    root.make_directory(&spec.process.cwd)
        .doing(|| format!("mkdir {}", spec.process.cwd))?;
    read_only_later.make_read_only()?;
    root.enter(spec.readonly_rootfs, spec.rootfs_propagation)?;
    timeline.mark("pivot");

    let program = Program::find(credentials::assume(&spec.process)?)?;
    timeline.mark("credentials");
    let hooks = Hooks {
        list: &spec.start_hooks,
        state: &spec.hook_state,
    };
    Ok(Prepared {
        work: Work::Program(program, hooks),
        spans: timeline.into_spans(),
        terminal,
    })
}

/// Completes the namespaces of a container, which its first process was born
/// in.
pub(super) fn enter_namespaces(id: &str, plan: &Plan) -> Result<()> {
    plan.complete()?;
    new_session(id)?;
    if plan.makes_network() {
        interface::set_up("lo").doing(|| "bring up lo".into())?;
    }
    Ok(())
}

/// A session, for a controlling terminal, and a keyring of its own.
pub(super) fn new_session(id: &str) -> Result<()> {
    setsid().doing(|| "setsid".into())?;
    keyring::join_session(&format!("_ses.{id}")).doing(|| "join a session keyring".into())
}

/// Takes the ids of root in a user namespace that was entered with those of
/// the guest's root.
pub(super) fn become_root() -> Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).doing(|| "setgroups".into())?;
    setresgid(gid, gid, gid).doing(|| "setgid to root of the user namespace".into())?;
    setresuid(uid, uid, uid).doing(|| "setuid to root of the user namespace".into())
}

/// Sets what the container's namespaces are called.
pub(super) fn names(spec: &ContainerSpec) -> Result<()> {
    if !spec.hostname.is_empty() {
        sethostname(&spec.hostname).doing(|| format!("set hostname {:?}", spec.hostname))?;
    }
    if !spec.domainname.is_empty() {
        sysctl::write("kernel.domainname", &spec.domainname)?;
    }
    Ok(())
}
