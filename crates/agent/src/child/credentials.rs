//! Giving up the rights of the guest's root, in the one order that works:
//!
//! 1. what needs a privilege (bounding set, groups, working directory),
//! 2. the user, keeping the permitted capabilities over the change,
//! 3. the capabilities of the process,
//! 4. at the very end, after the start, the seccomp filter.
//!
//! Without no_new_privs the kernel lets only CAP_SYS_ADMIN install a filter.
//! That capability then stays permitted, but not effective, until the filter is
//! in: looking for the program already happens with the rights it will have.

use std::{fs::File, io, path::Path};

use casemate_linux::{
    capability::{self, Sets},
    seccomp,
};
use casemate_protocol::agent::{Capabilities, Process};
use nix::{
    errno::Errno,
    sys::{
        prctl::{set_keepcaps, set_no_new_privs},
        stat::{Mode, fstat, umask},
    },
    unistd::{Gid, Uid, chdir, fchown, getcwd, setgroups, setresgid, setresuid},
};

use crate::error::{Doing, Error, Result};

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Umask when the specification has none, as runc's.
const DEFAULT_UMASK: u32 = 0o022;

/// A process that has its rights, but for the last step.
pub(super) struct Confined<'a> {
    pub(super) process: &'a Process,
    capabilities: Capabilities,
    filter_needs_admin: bool,
}

/// Takes user, groups, working directory, umask and capabilities.
pub(super) fn assume(process: &Process) -> Result<Confined<'_>> {
    let capabilities = process.capabilities.as_ref().cloned().unwrap_or_default();
    let filtered = !process.seccomp.program.is_empty();
    let confined = Confined {
        process,
        filter_needs_admin: filtered && !process.no_new_privileges,
        capabilities,
    };
    if process.no_new_privileges {
        set_no_new_privs().doing(|| "set no_new_privs".into())?;
    }
    capability::limit_bounding(confined.capabilities.bounding)
        .doing(|| "limit the bounding set".into())?;
    // First with the rights of root: the directory may be closed to the user.
    let closed = match chdir(process.cwd.as_str()) {
        Err(Errno::EACCES) => true,
        other => {
            other.doing(|| in_cwd(process))?;
            false
        }
    };
    set_user(process)?;
    if closed {
        chdir(process.cwd.as_str()).doing(|| in_cwd(process))?;
    }
    check_cwd()?;
    confined.set_capabilities()?;
    umask(Mode::from_bits_truncate(
        process.umask.unwrap_or(DEFAULT_UMASK),
    ));
    Ok(confined)
}

fn in_cwd(process: &Process) -> String {
    format!("chdir to cwd ({:?}) set in config.json failed", process.cwd)
}

/// A working directory that is not below the root would be a way out.
fn check_cwd() -> Result<()> {
    match getcwd() {
        Ok(path) if path.starts_with("/") => Ok(()),
        _ => Err(Error::invalid(
            "current working directory",
            "is outside of the container's root",
        )),
    }
}

fn set_user(process: &Process) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    give_streams(uid).doing(|| "give the standard streams to the user".into())?;
    let groups: Vec<Gid> = process
        .additional_gids
        .iter()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    set_keepcaps(true).doing(|| "prctl PR_SET_KEEPCAPS".into())?;
    setgroups(&groups).doing(|| "setgroups".into())?;
    setresgid(gid, gid, gid).doing(|| format!("setgid {gid}"))?;
    setresuid(uid, uid, uid).doing(|| format!("setuid {uid}"))?;
    set_keepcaps(false).doing(|| "prctl PR_SET_KEEPCAPS".into())
}

/// Lets the user open /dev/stdout and its like again. The null device stays
/// everybody's.
fn give_streams(uid: Uid) -> io::Result<()> {
    let null = nix::sys::stat::makedev(1, 3);
    let streams = [
        fstat(io::stdin())?,
        fstat(io::stdout())?,
        fstat(io::stderr())?,
    ];
    for (number, stat) in streams.into_iter().enumerate() {
        if stat.st_rdev == null || stat.st_uid == uid.as_raw() {
            continue;
        }
        let given = match number {
            0 => fchown(io::stdin(), Some(uid), None),
            1 => fchown(io::stdout(), Some(uid), None),
            _ => fchown(io::stderr(), Some(uid), None),
        };
        match given {
            // An owner from outside the user namespace cannot be changed.
            Err(Errno::EPERM | Errno::EINVAL) => {}
            other => other?,
        }
    }
    Ok(())
}

impl Confined<'_> {
    fn set_capabilities(&self) -> Result<()> {
        let wanted = &self.capabilities;
        let kept = match self.filter_needs_admin {
            true => CAP_SYS_ADMIN,
            false => 0,
        };
        capability::set(Sets {
            effective: wanted.effective,
            permitted: wanted.permitted | kept,
            inheritable: wanted.inheritable,
        })
        .doing(|| "unable to apply caps".into())?;
        // Raised last; a change of user would have cleared it.
        capability::set_ambient(wanted.ambient).doing(|| "unable to apply ambient caps".into())
    }

    /// The last step before exec.
    pub(super) fn install_filter(&self) -> Result<()> {
        let filter = &self.process.seccomp;
        if filter.program.is_empty() {
            return Ok(());
        }
        let wanted = &self.capabilities;
        let sets = Sets {
            effective: wanted.effective,
            permitted: wanted.permitted,
            inheritable: wanted.inheritable,
        };
        if self.filter_needs_admin {
            capability::set(Sets {
                effective: CAP_SYS_ADMIN,
                permitted: sets.permitted | CAP_SYS_ADMIN,
                ..sets
            })
            .doing(|| "unable to apply caps".into())?;
        }
        seccomp::install(&filter.program, filter.flags)
            .doing(|| "install the seccomp filter".into())?;
        if self.filter_needs_admin {
            // The filter has to allow capset, as it has to with runc.
            capability::set(sets).doing(|| "unable to apply caps".into())?;
        }
        Ok(())
    }
}

/// Home directory of a user by the container's /etc/passwd; "/" for unknown
/// ones.
pub(super) fn home(uid: u32) -> String {
    let passwd = Path::new("/etc/passwd");
    // Only a plain file is read: anything else could keep us waiting.
    let plain = passwd.metadata().is_ok_and(|metadata| metadata.is_file());
    let text = match plain {
        true => {
            File::open(passwd).and_then(|file| io::read_to_string(io::Read::take(file, MAX_PASSWD)))
        }
        false => return "/".into(),
    };
    text.ok()
        .and_then(|text| home_in(&text, uid))
        .unwrap_or_else(|| "/".into())
}

/// Longest /etc/passwd that is read.
const MAX_PASSWD: u64 = 1 << 20;

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let mut users = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let user = users.find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid))?;
    let home = user.get(5)?;
    (!home.is_empty()).then(|| (*home).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_of_a_user_is_the_sixth_field() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nweb:x:33:33::/var/www:/bin/false\nbad:x:7\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 1000), None);
    }
}
