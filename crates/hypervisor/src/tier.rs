//! How strong the wall is that this host can build, and why.
//!
//! `/dev/kvm` that opens is no proof: there are hosts without virtualization in
//! the processor on which it opens, answers every query, and interprets a guest
//! so slowly that no Linux kernel ever comes up. So three things have to agree:
//! the processor's flags, KVM's interface, and a tiny guest that has run.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    time::Duration,
};

use casemate_config::Tier;
use casemate_linux::kvm_probe::{self, Finding};
use serde::{Deserialize, Serialize};

use crate::processor::Processor;

/// The device that stands for KVM.
pub(crate) const KVM_DEVICE: &str = "/dev/kvm";

/// How long the tiny guest may take; a sound host needs some milliseconds.
const GUEST_LIMIT: Duration = Duration::from_secs(5);

/// What was found out about a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assessment {
    /// The strongest tier that the evidence supports.
    pub tier: Tier,
    /// What the verdict rests on.
    pub evidence: Vec<Evidence>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// What was looked at: "processor", "/dev/kvm", "guest".
    pub subject: String,
    /// Whether it speaks for KVM.
    pub sound: bool,
    /// What was seen.
    pub finding: String,
    /// What would change it.
    pub remedy: Option<String>,
}

impl Assessment {
    /// The finding that decided against KVM, if one did.
    pub fn obstacle(&self) -> Option<&Evidence> {
        self.evidence.iter().find(|evidence| !evidence.sound)
    }
}

/// Looks at this host. Takes some milliseconds where KVM works, up to five
/// seconds where it hangs.
///
/// # Errors
/// When the host cannot be looked at: no `/proc`, no right to make a process.
pub fn assess() -> io::Result<Assessment> {
    let processor = Processor::read()?;
    let probe = kvm_probe::run(GUEST_LIMIT)?;
    let device = fs::metadata(KVM_DEVICE).map(|device| access(&device)).ok();
    Ok(judge(&processor, &probe, device))
}

/// Who may open the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Everyone,
    Group(u32),
    RootOnly,
}

/// Who may read and write a device, by its mode.
pub(crate) fn access(device: &Metadata) -> Access {
    match device.mode() {
        mode if mode & 0o006 == 0o006 => Access::Everyone,
        mode if mode & 0o060 == 0o060 => Access::Group(device.gid()),
        _ => Access::RootOnly,
    }
}

fn judge(processor: &Processor, probe: &Finding, device: Option<Access>) -> Assessment {
    let mut evidence = vec![judge_processor(processor)];
    evidence.extend(judge_probe(probe));
    evidence.extend(device.map(judge_access));
    let nested = processor.has("hypervisor");
    let tier = match evidence.iter().all(|evidence| evidence.sound) {
        false => Tier::Emulated,
        true if nested => Tier::Nested,
        true => Tier::Kvm,
    };
    if tier != Tier::Emulated {
        let finding = if nested {
            "this host is itself a virtual machine"
        } else {
            "this host is not a virtual machine"
        };
        evidence.push(sound("host", finding));
    }
    Assessment { tier, evidence }
}

fn judge_processor(processor: &Processor) -> Evidence {
    if let Some(flag) = ["vmx", "svm"].into_iter().find(|flag| processor.has(flag)) {
        return sound("processor", &format!("offers virtualization ({flag})"));
    }
    let remedy = if processor.has("hypervisor") {
        "this host is a virtual machine: switch on nested virtualization where it runs"
    } else {
        "switch on virtualization (VT-x, AMD-V) in the firmware's settings"
    };
    unsound(
        "processor",
        "offers no virtualization (neither vmx nor svm)",
        remedy,
    )
}

fn judge_probe(probe: &Finding) -> Vec<Evidence> {
    let interface = sound(KVM_DEVICE, "opens, and has the interface that is needed");
    match probe {
        Finding::Works => vec![interface, sound("guest", "a tiny guest ran in 64-bit mode")],
        Finding::NoDevice(why) => vec![unsound(
            KVM_DEVICE,
            &format!("cannot be opened: {why}"),
            "load the module: modprobe kvm_intel, or kvm_amd; in a container, pass the device in",
        )],
        Finding::Interface(why) => vec![unsound(
            KVM_DEVICE,
            &format!("lacks what is needed: {why}"),
            "use a newer kernel on the host",
        )],
        Finding::Guest(why) => vec![
            interface,
            unsound(
                "guest",
                &format!("a tiny guest failed: {why}"),
                "KVM is there without working virtualization behind it: switch that on, or \
                 accept emulation",
            ),
        ],
    }
}

fn judge_access(access: Access) -> Evidence {
    match access {
        Access::Everyone => sound(KVM_DEVICE, "everyone may use it"),
        Access::Group(group) => sound(KVM_DEVICE, &format!("group {group} may use it")),
        Access::RootOnly => unsound(
            KVM_DEVICE,
            "only root may use it, and the virtual machine monitor does not run as root",
            "chgrp kvm /dev/kvm && chmod 660 /dev/kvm",
        ),
    }
}

fn sound(subject: &str, finding: &str) -> Evidence {
    Evidence {
        subject: subject.to_owned(),
        sound: true,
        finding: finding.to_owned(),
        remedy: None,
    }
}

fn unsound(subject: &str, finding: &str, remedy: &str) -> Evidence {
    Evidence {
        sound: false,
        remedy: Some(remedy.to_owned()),
        ..sound(subject, finding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(flags: &str) -> Processor {
        Processor::with_flags(flags)
    }

    fn verdict(flags: &str, probe: Finding, device: Option<Access>) -> (Tier, Option<String>) {
        let assessment = judge(&processor(flags), &probe, device);
        let obstacle = assessment.obstacle().map(|obstacle| {
            assert!(obstacle.remedy.is_some(), "{obstacle:?}");
            obstacle.subject.clone()
        });
        (assessment.tier, obstacle)
    }

    #[test]
    fn all_evidence_has_to_agree() {
        let group = Some(Access::Group(108));
        let works = || Finding::Works;
        assert_eq!(verdict("fpu vmx", works(), group), (Tier::Kvm, None));
        assert_eq!(
            verdict("svm hypervisor", works(), Some(Access::Everyone)),
            (Tier::Nested, None)
        );
        let emulated = |subject: &str| (Tier::Emulated, Some(subject.to_owned()));
        assert_eq!(verdict("hypervisor", works(), group), emulated("processor"));
        assert_eq!(
            verdict("vmx", Finding::Guest("hung".into()), group),
            emulated("guest")
        );
        assert_eq!(
            verdict("vmx", Finding::Interface("old".into()), group),
            emulated(KVM_DEVICE)
        );
        assert_eq!(
            verdict("vmx", Finding::NoDevice("none".into()), None),
            emulated(KVM_DEVICE)
        );
        assert_eq!(
            verdict("vmx", works(), Some(Access::RootOnly)),
            emulated(KVM_DEVICE)
        );
    }
}
