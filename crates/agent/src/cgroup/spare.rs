//! A cgroup that waits for a container: made, with the controllers' machinery set
//! up and the usual device rules in force, before anybody waits for it.

use std::os::fd::{AsFd, OwnedFd};

use casemate_linux::bpf;
use casemate_protocol::agent::{self, DeviceRule};

use super::Cgroup;
use crate::error::{Doing, Result};

/// Its path. No container can ask for it: see [`super::validate`].
pub(super) const PATH: &str = ".spare";

/// See the module.
#[derive(Debug)]
pub(crate) struct Spare {
    cgroup: Cgroup,
    rules: Vec<DeviceRule>,
    /// Has the rules in force.
    program: OwnedFd,
}

impl Spare {
    /// Makes it. There can be one at a time.
    pub(crate) fn make() -> Result<Self> {
        let rules = usual_rules();
        let plain = agent::Cgroup {
            path: PATH.into(),
            ..Default::default()
        };
        let mut cgroup = Cgroup::create(&plain)?;
        let program = cgroup.guard(&rules)?;
        cgroup.guarded = true;
        Ok(Self {
            cgroup,
            rules,
            program,
        })
    }

    /// Gives it to a container that wants such a cgroup, with its settings; rules
    /// that it does not want are in force no more. Nothing of it is left when that
    /// fails.
    pub(crate) async fn take(mut self, wanted: &agent::Cgroup) -> Result<Cgroup> {
        match self.adapt(wanted) {
            Ok(()) => Ok(self.cgroup),
            Err(error) => {
                self.cgroup.remove().await?;
                Err(error)
            }
        }
    }

    fn adapt(&mut self, wanted: &agent::Cgroup) -> Result<()> {
        if self.rules != wanted.device_rules {
            bpf::detach_device_program(self.program.as_fd(), self.cgroup.directory())
                .doing(|| "detach the usual device program from the cgroup".into())?;
            self.cgroup.guarded = false;
        }
        self.cgroup.set(&wanted.settings)
    }
}

/// What the host asks for where the client adds nothing of its own: nothing but
/// device nodes, which can be made but not opened, and the default devices.
fn usual_rules() -> Vec<DeviceRule> {
    let rule = |allow, kind: &str, major, minor, access: &str| DeviceRule {
        allow,
        kind: kind.into(),
        major,
        minor,
        access: access.into(),
        ..Default::default()
    };
    let open = |major, minor| rule(true, "c", Some(major), minor, "rwm");
    let mut rules = vec![
        rule(false, "a", None, None, "rwm"),
        rule(true, "c", None, None, "m"),
        rule(true, "b", None, None, "m"),
    ];
    rules.extend([3, 5, 7, 8, 9].map(|minor| open(1, Some(minor))));
    rules.extend([
        open(5, Some(0)),
        // Pseudo terminals and what makes them.
        open(136, None),
        open(5, Some(2)),
    ]);
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the host makes of the specifications of these clients, as its own tests
    /// have it.
    const ASKED: [&str; 3] = [
        include_str!("../../../sandbox/src/spec/tests/golden/podman-run.txt"),
        include_str!("../../../sandbox/src/spec/tests/golden/containerd-member.txt"),
        include_str!("../../../sandbox/src/spec/tests/golden/runc-spec.txt"),
    ];

    #[test]
    fn the_usual_rules_are_what_the_host_asks_for() {
        for text in ASKED {
            let begin = text.find("\ncgroup {").unwrap() + 1;
            let end = begin + text[begin..].find("\n}").unwrap() + 2;
            let spec: agent::ContainerSpec =
                protobuf::text_format::parse_from_str(&text[begin..end]).unwrap();
            assert_eq!(spec.cgroup.device_rules, usual_rules());
        }
    }
}
