//! What this host and a QEMU program can do, found out before the first machine.

use std::{io, os::unix::ffi::OsStringExt};

use casemate_config::{Accelerator as Choice, Tier};

use super::{
    Qemu, Settings, Version, command_line::Accelerator, installation::Installation, version::OLDEST,
};
use crate::{Capabilities, Error, Size, facts::Facts};

/// Most virtual processors of a q35 machine without an interrupt remapper.
const MAX_VCPUS: u32 = 255;
/// Device numbers of the root bus that root ports can take.
const MAX_HOTPLUG_SLOTS: u32 = 24;

impl Qemu {
    /// Finds out what this host and the program can do. The first call after
    /// the host's start runs the program and a tiny guest, which takes some
    /// tenths of a second; later ones read what was remembered.
    ///
    /// # Errors
    /// When the program is missing, too old or not QEMU, or the host is weaker
    /// than the settings allow.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let missing = |source| Error::File {
            what: "QEMU",
            path: settings.program.clone(),
            source,
        };
        let installation = Installation::of(&settings.program).map_err(missing)?;
        let mut facts = Facts::recall(&settings.facts).map_err(unreadable_host)?;
        let version = version_of(&installation, &mut facts).map_err(missing)?;
        if version < OLDEST {
            return Err(Error::Program {
                path: settings.program.clone(),
                problem: format!("QEMU {version} is too old: at least {OLDEST} is needed"),
            });
        }
        let tier = decide_tier(settings, &mut facts);
        let counter_khz = match tier {
            Ok(Tier::Emulated) => facts.counter_khz(),
            // KVM's own clock is better.
            _ => None,
        };
        facts.keep();
        let tier = tier?;
        Ok(Self {
            installation,
            capabilities: Capabilities {
                program: format!("QEMU {version}"),
                tier,
                max_vcpus: MAX_VCPUS,
                max_hotplug_slots: MAX_HOTPLUG_SLOTS,
                grown: Size {
                    vcpus: 1,
                    memory_mib: 1,
                },
            },
            accelerator: match tier {
                Tier::Emulated => Accelerator::Emulation {
                    translation_buffer_mib: settings.translation_buffer_mib,
                },
                Tier::Nested | Tier::Kvm => Accelerator::Kvm,
            },
            counter_khz,
            start_limit: settings.start_limit,
        })
    }
}

fn version_of(installation: &Installation, facts: &mut Facts) -> io::Result<Version> {
    let program = &installation.program;
    let environment: Vec<_> = installation
        .environment()
        .into_iter()
        .map(OsStringExt::into_vec)
        .collect();
    facts.version(program, || Version::ask(program, &environment))
}

fn decide_tier(settings: &Settings, facts: &mut Facts) -> Result<Tier, Error> {
    if settings.accelerator == Choice::Emulated {
        return at_least(settings.min_tier, Tier::Emulated, || {
            "emulation is configured (vmm.accelerator)".to_owned()
        });
    }
    let assessment = facts.assessment().map_err(unreadable_host)?;
    let demanded = match settings.accelerator {
        Choice::Kvm => settings.min_tier.max(Tier::Nested),
        Choice::Auto | Choice::Emulated => settings.min_tier,
    };
    at_least(demanded, assessment.tier, || match assessment.obstacle() {
        Some(obstacle) => format!("{} {}", obstacle.subject, obstacle.finding),
        None => "this host is itself a virtual machine".to_owned(),
    })
}

fn at_least(min_tier: Tier, tier: Tier, reason: impl Fn() -> String) -> Result<Tier, Error> {
    if tier >= min_tier {
        return Ok(tier);
    }
    Err(Error::TooWeak {
        tier,
        min_tier,
        reason: reason(),
    })
}

fn unreadable_host(source: io::Error) -> Error {
    Error::Spawn {
        step: "finding out what this host can do".to_owned(),
        source,
    }
}
