//! `check`: whether and how well this host can isolate containers, with what to
//! do where it cannot.

use std::{fs::File, io, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use casemate_config::{Config, Ksm};
use casemate_hypervisor::{
    Hypervisor,
    qemu::{Qemu, Settings},
    tier::{self, Assessment},
};
use casemate_linux::ksm;

use crate::arguments::Global;

/// # Errors
/// For a bad configuration, or a host that cannot be looked at. That
/// containers cannot run here is exit code 1 and said in the text.
pub fn run(global: &Global) -> Result<ExitCode> {
    let config = Config::load(global.config.as_deref())?;
    let assessment = tier::assess().context("looking at this host")?;
    let mut sound = true;

    println!("isolation tier: {}", assessment.tier);
    print_evidence(&assessment);
    match Qemu::open(&Settings::from(&config)) {
        Ok(qemu) => {
            let capabilities = qemu.capabilities();
            println!(
                "hypervisor:     {} ({}), containers run on the {} tier",
                capabilities.program,
                config.qemu.path.display(),
                capabilities.tier
            );
        }
        Err(error) => {
            sound = false;
            println!("hypervisor:     unusable: {error}");
        }
    }
    for (what, path) in [
        ("guest kernel", &config.guest.kernel),
        ("guest initrd", &config.guest.initrd),
    ] {
        sound &= print_file(what, path);
    }
    if config.vmm.ksm == Ksm::On {
        println!("merging:        {}", merging(ksm::is_running(), &mut sound));
    }
    println!("templates:      {}", super::template::verdict(&config));
    println!("rights:         {}", rights(&mut sound));
    println!(
        "verdict:        {}",
        if sound {
            "containers can run"
        } else {
            "containers cannot run"
        }
    );
    Ok(ExitCode::from(u8::from(!sound)))
}

fn print_evidence(assessment: &Assessment) {
    for evidence in &assessment.evidence {
        let mark = if evidence.sound { "+" } else { "-" };
        println!("  {mark} {}: {}", evidence.subject, evidence.finding);
        if let Some(remedy) = &evidence.remedy {
            println!("      remedy: {remedy}");
        }
    }
}

fn print_file(what: &str, path: &Path) -> bool {
    let opened = File::open(path);
    match &opened {
        Ok(_) => println!("{what}:   {}", path.display()),
        Err(error) => println!(
            "{what}:   {}: {error}; build it with ./quickstart or name another in the configuration",
            path.display()
        ),
    }
    opened.is_ok()
}

/// What becomes of `vmm.ksm = "on"`.
fn merging(running: io::Result<bool>, sound: &mut bool) -> &'static str {
    match running {
        Ok(true) => "equal pages that sandboxes have for themselves are merged (vmm.ksm)",
        Ok(false) => "nothing is merged until 1 is written to /sys/kernel/mm/ksm/run (vmm.ksm)",
        Err(_) => {
            *sound = false;
            "vmm.ksm is on, and this kernel cannot merge memory (KSM, Linux 6.4 or later)"
        }
    }
}

fn rights(sound: &mut bool) -> &'static str {
    if nix::unistd::geteuid().is_root() {
        return "root";
    }
    *sound = false;
    "not root: containers are made by root (rootless use is not supported)"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_merge_is_no_host_for_those_who_want_it() {
        let mut sound = true;
        for running in [true, false] {
            assert!(merging(Ok(running), &mut sound).contains("vmm.ksm"));
            assert!(sound);
        }
        merging(Err(io::ErrorKind::NotFound.into()), &mut sound);
        assert!(!sound);
    }
}
