//! Making a container's first process, and processes beside it: the agent's
//! half. The other half runs in the child ([`crate::child`]).

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
};

use casemate_linux::{
    attributes::{self, Scheduling},
    foreign,
    process::{Birth, pidfd_open, spawn},
};
use casemate_protocol::agent::{self, ContainerSpec, IdMapping, Span};
use nix::sched::{CloneFlags, setns};

use super::{
    Container, Process,
    link::{self, Link},
    stdio::{self, AgentEnds, ProcessEnds},
};
use crate::{
    cgroup::{Cgroup, Spare},
    child::{self, namespaces::Plan},
    error::{Doing, Error, Result},
    reaper::{End, Reaper},
    streams::{Complete, Streams},
    timeline::{Timeline, now},
};

/// A process between its making and its start. Dropping it ends the process:
/// nobody will tell it to go on.
struct Unborn {
    pid: u32,
    pidfd: OwnedFd,
    end: End,
    link: Link,
}

/// Makes a container whose first process waits before exec, in a `spare` cgroup if
/// there is one for it. An error leaves nothing of it.
pub(crate) async fn create(
    id: &str,
    spec: &ContainerSpec,
    plan: Plan,
    spare: Option<Spare>,
    reaper: &Reaper,
) -> Result<(Container, Vec<Span>)> {
    let mut timeline = Timeline::since(now());
    let cgroup = match spare {
        Some(spare) => spare.take(&spec.cgroup).await?,
        None => Cgroup::create(&spec.cgroup)?,
    };
    timeline.mark("cgroup");
    match make_init(id, spec, &plan, &cgroup, reaper, &mut timeline).await {
        Ok(init) => {
            let container = Container::new(id, cgroup, plan.kinds(), init, spec);
            Ok((container, timeline.into_spans()))
        }
        Err(error) => {
            cgroup.remove().await?;
            Err(error)
        }
    }
}

async fn make_init(
    id: &str,
    spec: &ContainerSpec,
    plan: &Plan,
    cgroup: &Cgroup,
    reaper: &Reaper,
    timeline: &mut Timeline,
) -> Result<Process> {
    let (theirs, ours) = ends(&spec.process, &spec.streams)?;
    let (link, child_link) = link::pair()?;
    let began = now();
    let mut keep = theirs.descriptors();
    keep.extend(plan.descriptors());
    let body = || {
        child::run(&child_link, &keep, || match spec.pause {
            true => child::pause::set_up(id, spec, plan, &theirs, began),
            false => child::init::set_up(id, spec, plan, &theirs, cgroup.path(), began),
        })
    };
    let unborn = if plan.joins_user() {
        let go_between = || child::go_between(plan, &child_link, &keep, &body);
        through(go_between, cgroup.directory(), link, reaper).await?
    } else {
        let birth = Birth {
            namespaces: Some(plan.at_birth()),
            cgroup: Some(cgroup.directory()),
        };
        in_pid_namespace(plan.joined_pid(), || make(birth, body, link, reaper))?
    };
    drop((theirs, child_link));
    if plan.makes_user() {
        write_id_map(unborn.pid, "uid_map", &spec.uid_mappings)?;
        write_id_map(unborn.pid, "gid_map", &spec.gid_mappings)?;
    }
    timeline.mark("clone");
    let complete = match spec.process.terminal {
        true => Complete::Hangup,
        false => Complete::EndOfFile,
    };
    let (process, wanted) = (&spec.process, &spec.streams);
    settle(unborn, process, wanted, ours, complete, timeline).await
}

/// Adds a process that waits before exec to a container.
pub(crate) async fn add(
    container: &Container,
    process: &agent::Process,
    streams: &agent::Streams,
    reaper: &Reaper,
) -> Result<Arc<Process>> {
    let (theirs, ours) = ends(process, streams)?;
    let (link, child_link) = link::pair()?;
    let init = container.init.pidfd.as_fd();
    let mut keep = theirs.descriptors();
    keep.push(init);
    let body = || {
        child::run(&child_link, &keep, || {
            child::added::set_up(&container.id, process, container.kinds, init, &theirs)
        })
    };
    let beside = container.cgroup.beside(container.init.pid)?;
    let birth = Birth {
        namespaces: None,
        cgroup: Some(match &beside {
            Some(cgroup) => cgroup.as_fd(),
            None => container.cgroup.directory(),
        }),
    };
    let own_pids = container.kinds.contains(CloneFlags::CLONE_NEWPID);
    let unborn = in_pid_namespace(own_pids.then_some(init), || make(birth, body, link, reaper))?;
    drop((theirs, child_link));
    let complete = match process.terminal {
        true => Complete::Hangup,
        false => Complete::EndOfProcess,
    };
    let mut timeline = Timeline::since(now());
    let added = settle(unborn, process, streams, ours, complete, &mut timeline).await?;
    Ok(Arc::new(added))
}

fn ends(process: &agent::Process, wanted: &agent::Streams) -> Result<(ProcessEnds, AgentEnds)> {
    match process.terminal {
        true => Ok((ProcessEnds::Terminal, AgentEnds::default())),
        false => stdio::pipes(wanted),
    }
}

/// Makes a child of ours.
fn make(
    birth: Birth<'_>,
    body: impl FnOnce() -> i32,
    link: Link,
    reaper: &Reaper,
) -> Result<Unborn> {
    let child = spawn(birth, body).doing(|| "make a process".into())?;
    let end = reaper.watch(child.pid());
    let pidfd = child.pidfd().try_clone_to_owned();
    Ok(Unborn {
        pid: child.pid(),
        pidfd: pidfd.doing(|| "copy a descriptor".into())?,
        end,
        link,
    })
}

/// Has a go-between enter a foreign user namespace, from which there is no way
/// back, and make the process there. It becomes our child when the go-between
/// has ended: we are PID 1.
async fn through(
    go_between: impl FnOnce() -> i32,
    cgroup: BorrowedFd<'_>,
    link: Link,
    reaper: &Reaper,
) -> Result<Unborn> {
    let birth = Birth {
        namespaces: None,
        cgroup: Some(cgroup),
    };
    let between = make(birth, go_between, link, reaper)?;
    let Some(pid) = between.link.made().await? else {
        return Err(lost(between.end).await);
    };
    // It waits for our word, and nobody but us can reap it.
    let end = reaper.watch(pid);
    let pidfd = pidfd_open(pid).doing(|| "open a pidfd".into())?;
    Ok(Unborn {
        pid,
        pidfd,
        end,
        link: between.link,
    })
}

/// Calls `act` so that children made by it are in the PID namespace of another
/// process. Nothing else can run on the only thread meanwhile.
fn in_pid_namespace<T>(of: Option<BorrowedFd<'_>>, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(of) = of else { return act() };
    let own = fs::File::open("/proc/self/ns/pid").doing(|| "open /proc/self/ns/pid".into())?;
    setns(of, CloneFlags::CLONE_NEWPID).doing(|| "join a PID namespace".into())?;
    let result = act();
    setns(own, CloneFlags::CLONE_NEWPID).doing(|| "return to the PID namespace".into())?;
    result
}

fn write_id_map(pid: u32, file: &str, mappings: &[IdMapping]) -> Result<()> {
    let lines: String = mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size))
        .collect();
    let path = format!("/proc/{pid}/{file}");
    fs::write(&path, lines).doing(|| format!("write {path}"))
}

/// Lets a process set itself up and waits until it could execute its program.
async fn settle(
    unborn: Unborn,
    process: &agent::Process,
    wanted: &agent::Streams,
    mut ends: AgentEnds,
    complete: Complete,
    timeline: &mut Timeline,
) -> Result<Process> {
    unborn.link.proceed()?;
    let Some(ready) = unborn.link.ready().await? else {
        return Err(lost(unborn.end).await);
    };
    timeline.adopt(ready.spans);
    apply_attributes(unborn.pid, process)?;
    let terminal = match ready.terminal {
        Some(number) => Some(
            foreign::copy_of(unborn.pidfd.as_fd(), number)
                .doing(|| "take the terminal of the process".into())?,
        ),
        None => None,
    };
    if let Some(master) = &terminal {
        ends = stdio::terminal(master, wanted)?;
    }
    timeline.mark("limits");
    Ok(Process {
        pid: unborn.pid,
        pidfd: unborn.pidfd,
        streams: Streams::new(ends, complete, unborn.end.clone()),
        end: unborn.end,
        link: Mutex::new(Some(unborn.link)),
        terminal,
    })
}

async fn lost(mut end: End) -> Error {
    Error::ChildLost(end.reached().await.exit.to_string())
}

/// Sets what a process may not be able to set for itself. It waits meanwhile,
/// so that its limits do not hinder its own setting up.
fn apply_attributes(pid: u32, process: &agent::Process) -> Result<()> {
    for limit in &process.rlimits {
        attributes::limit(pid, limit.resource, limit.soft, limit.hard)
            .doing(|| format!("error setting rlimit type {}", limit.resource))?;
    }
    if let Some(score) = process.oom_score_adj {
        let path = format!("/proc/{pid}/oom_score_adj");
        fs::write(&path, score.to_string()).doing(|| format!("write {score} to {path}"))?;
    }
    if let Some(wanted) = process.scheduler.as_ref() {
        let scheduling = Scheduling {
            policy: wanted.policy,
            flags: wanted.flags,
            nice: wanted.nice,
            priority: wanted.priority.max(0) as u32,
            runtime: wanted.runtime_ns,
            deadline: wanted.deadline_ns,
            period: wanted.period_ns,
        };
        attributes::schedule(pid, &scheduling).doing(|| "error setting scheduler".into())?;
    }
    if let Some(wanted) = process.io_priority.as_ref() {
        attributes::io_priority(pid, wanted.class, wanted.priority)
            .doing(|| "error setting I/O priority".into())?;
    }
    Ok(())
}
