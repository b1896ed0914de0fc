//! Landlock: the share and nothing else, no TCP, no signals to others.

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Error, failed};
use crate::options::Inodes;

/// Restricts this thread; says how far the kernel went along.
///
/// Connecting to a unix socket by path is no access Landlock knows in these
/// versions, so the vsock directory needs no rule.
pub(super) fn restrict(inodes: Inodes) -> Result<&'static str, Error> {
    if inodes == Inodes::Handles {
        // A file opened by handle may have no path, and Landlock denies those.
        return Ok("off: file handles");
    }
    match ruleset() {
        Ok(RulesetStatus::FullyEnforced) => Ok("full"),
        Ok(RulesetStatus::PartiallyEnforced) => Ok("partial: older kernel"),
        Ok(RulesetStatus::NotEnforced) => Ok("off: not in this kernel"),
        Err(Refusal::Unsupported) => Ok("off: kernel before 5.19"),
        Err(Refusal::Failed(err)) => Err(failed("Landlock")(io::Error::other(err))),
    }
}

enum Refusal {
    Unsupported,
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

fn ruleset() -> Result<RulesetStatus, Refusal> {
    // Before its second version Landlock forbids every rename and link from one
    // directory to another: better none than broken files.
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)
        .map_err(|_| Refusal::Unsupported)?;
    let failed = |err: RulesetError| Refusal::Failed(err.into());
    let all = AccessFs::from_all(ABI::V5);
    let share = PathFd::new("/").map_err(|err| Refusal::Failed(err.into()))?;
    let status = ruleset
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .map_err(failed)?
        .handle_access(AccessNet::from_all(ABI::V4))
        .map_err(failed)?
        .scope(Scope::from_all(ABI::V6))
        .map_err(failed)?
        .create()
        .map_err(failed)?
        .add_rule(PathBeneath::new(share, served(all)))
        .map_err(failed)?
        .restrict_self()
        .map_err(failed)?;
    Ok(status.ruleset)
}

/// A file server neither runs the guest's files nor talks to its devices.
fn served(all: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    all & !(AccessFs::Execute | AccessFs::IoctlDev)
}
