//! What this host and a QEMU program can do, found out before the first machine.

use std::{fs, io, os::unix::ffi::OsStringExt};

use casemate_config::{Accelerator as Choice, Tier};
use nix::unistd::{SysconfVar, sysconf};

use super::{
    Qemu, Settings, Version, command_line::Accelerator, installation::Installation, version::OLDEST,
};
use crate::{Capabilities, Error, Size, facts::Facts};

/// Most virtual processors of a q35 machine without an interrupt remapper.
const MAX_VCPUS: u32 = 255;
/// Most virtual processors that a place is kept for.
const MAX_LATER_VCPUS: u32 = 32;
/// Most memory that a place is kept for: within 40 bits of addresses.
const MAX_MEMORY_GIB: u64 = 512;
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
                grown: host_size().map_err(unreadable_host)?,
            },
            accelerator: match tier {
                Tier::Emulated => Accelerator::Emulation {
                    translation_buffer_mib: settings.translation_buffer_mib,
                },
                Tier::Nested | Tier::Kvm => Accelerator::Kvm,
            },
            counter_khz,
            merge_memory: settings.merge_memory,
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

/// As large as the host, as far as machines can be: to be ready for more costs a
/// guest's kernel time and memory (for 32 processors 30 ms and 7 MiB by emulation).
fn host_size() -> io::Result<Size> {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN)?.unwrap_or(1);
    let text = fs::read_to_string("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let total = total.ok_or(io::ErrorKind::InvalidData)?;
    let gib = (total >> 20).clamp(1, MAX_MEMORY_GIB);
    Ok(Size {
        vcpus: (online as u32).clamp(1, MAX_LATER_VCPUS),
        memory_mib: (gib << 10) as u32,
    })
}

pub(super) fn unreadable_host(source: io::Error) -> Error {
    Error::Spawn {
        step: "finding out what this host can do".to_owned(),
        source,
    }
}
