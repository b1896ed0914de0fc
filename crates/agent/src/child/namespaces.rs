//! Which namespaces a container makes and which it shares with another one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use casemate_linux::process::Namespaces;
use casemate_protocol::agent::namespace::Kind;
use nix::sched::{setns, unshare};

use super::root::clone_source;
use crate::error::{Doing, Result};

/// A set of kinds.
pub(crate) type Kinds = Namespaces;

/// The flag of a kind for clone3(2) and setns(2).
pub(crate) fn flag(kind: Kind) -> Kinds {
    match kind {
        Kind::PID => Kinds::CLONE_NEWPID,
        Kind::MOUNT => Kinds::CLONE_NEWNS,
        Kind::IPC => Kinds::CLONE_NEWIPC,
        Kind::UTS => Kinds::CLONE_NEWUTS,
        Kind::CGROUP => Kinds::CLONE_NEWCGROUP,
        Kind::USER => Kinds::CLONE_NEWUSER,
        Kind::NETWORK => Kinds::CLONE_NEWNET,
        Kind::TIME => Kinds::from_bits_retain(libc::CLONE_NEWTIME),
    }
}

/// Namespaces of a container to be made.
#[derive(Debug)]
pub(crate) struct Plan {
    make: Kinds,
    join: Vec<(Kinds, OwnedFd)>,
    /// The guest's sysfs, for a process that may not mount its own: that takes
    /// rights over the network namespace. Only the agent can take it without
    /// what is mounted below it.
    sysfs: Option<OwnedFd>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            make: Kinds::empty(),
            join: Vec::new(),
            sysfs: None,
        }
    }
}

impl Plan {
    /// Adds one of its own.
    pub(crate) fn make(&mut self, kind: Kind) {
        self.make |= flag(kind);
    }

    /// Adds one that another process (by its pidfd) is in.
    pub(crate) fn join(&mut self, kind: Kind, of: OwnedFd) {
        self.join.push((flag(kind), of));
    }

    /// Opens what the new process cannot open for itself.
    pub(crate) fn provide(&mut self) -> Result<()> {
        let foreign_network = !self.kinds().contains(Kinds::CLONE_NEWNET);
        if self.has_user() && foreign_network {
            self.sysfs = Some(clone_source("/sys", false)?);
        }
        Ok(())
    }

    /// See [`Plan::provide`]. It can be attached once.
    pub(super) fn sysfs(&self) -> Option<BorrowedFd<'_>> {
        self.sysfs.as_ref().map(AsFd::as_fd)
    }

    /// Everything that differs from the agent.
    pub(crate) fn kinds(&self) -> Kinds {
        self.join
            .iter()
            .fold(self.make, |kinds, (kind, _)| kinds | *kind)
    }

    /// What clone3(2) makes. Not the cgroup namespace: its root would be the
    /// parent's cgroup, not the one that the child is born in.
    pub(crate) fn at_birth(&self) -> Kinds {
        self.make - Kinds::CLONE_NEWCGROUP
    }

    /// A user namespace of its own waits for its id maps.
    pub(crate) fn makes_user(&self) -> bool {
        self.make.contains(Kinds::CLONE_NEWUSER)
    }

    /// A network namespace of its own has an interface that is down.
    pub(crate) fn makes_network(&self) -> bool {
        self.make.contains(Kinds::CLONE_NEWNET)
    }

    /// A cgroup namespace of its own: what is in it does not see where it is.
    pub(crate) fn makes_cgroup(&self) -> bool {
        self.make.contains(Kinds::CLONE_NEWCGROUP)
    }

    /// Without privileges outside, whoever made the user namespace.
    pub(crate) fn has_user(&self) -> bool {
        self.kinds().contains(Kinds::CLONE_NEWUSER)
    }

    pub(crate) fn joins_user(&self) -> bool {
        self.joined(Kinds::CLONE_NEWUSER).is_some()
    }

    /// The PID namespace to be born in.
    pub(crate) fn joined_pid(&self) -> Option<BorrowedFd<'_>> {
        self.joined(Kinds::CLONE_NEWPID)
    }

    fn joined(&self, kind: Kinds) -> Option<BorrowedFd<'_>> {
        let (_, of) = self.join.iter().find(|(joined, _)| *joined == kind)?;
        Some(of.as_fd())
    }

    /// The descriptors that the child has to keep.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.join
            .iter()
            .map(|(_, of)| of)
            .chain(&self.sysfs)
            .map(AsFd::as_fd)
    }

    /// Joins everything, the user namespace first: it gives the right to the
    /// others. A PID namespace takes effect for children.
    pub(crate) fn join_all(&self) -> Result<()> {
        let (user, other): (Vec<_>, Vec<_>) = self
            .join
            .iter()
            .partition(|(kind, _)| *kind == Kinds::CLONE_NEWUSER);
        for (kind, of) in user.into_iter().chain(other) {
            enter(of.as_fd(), *kind)?;
        }
        Ok(())
    }

    /// Completes the namespaces of a process that was born in
    /// [`Plan::at_birth`].
    pub(crate) fn complete(&self) -> Result<()> {
        // A go-between has joined all; otherwise the child was born in the PID
        // namespace and joins the rest.
        if !self.joins_user() {
            for (kind, of) in &self.join {
                if *kind != Kinds::CLONE_NEWPID {
                    enter(of.as_fd(), *kind)?;
                }
            }
        }
        if self.make.contains(Kinds::CLONE_NEWCGROUP) {
            unshare(Kinds::CLONE_NEWCGROUP).doing(|| "make a cgroup namespace".into())?;
        }
        Ok(())
    }
}

/// Enters namespaces of another process.
pub(crate) fn enter(of: BorrowedFd<'_>, kinds: Kinds) -> Result<()> {
    setns(of, kinds).doing(|| format!("join namespaces {kinds:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_namespace_is_made_later() {
        let mut plan = Plan::default();
        plan.make(Kind::PID);
        plan.make(Kind::CGROUP);
        assert_eq!(plan.at_birth(), Kinds::CLONE_NEWPID);
        assert_eq!(plan.kinds(), Kinds::CLONE_NEWPID | Kinds::CLONE_NEWCGROUP);
        assert!(!plan.makes_user());
    }
}
