//! `bench`: this runtime measured beside others, by the crate of that name.

use std::process::ExitCode;

use anyhow::{Context, Result};
use casemate_bench::{Options, Subject, Variant};
use casemate_config::{Config, Tier};
use casemate_hypervisor::{
    Hypervisor,
    qemu::{Qemu, Settings},
};

use crate::arguments::Global;

/// # Errors
/// For a bad configuration, a host on which containers cannot run, and those of the
/// measurement.
pub fn run(global: &Global, options: &Options) -> Result<ExitCode> {
    let config = Config::load(global.config.as_deref())?;
    let tier = Qemu::open(&Settings::from(&config))?.capabilities().tier;
    let subject = Subject {
        casemate: std::env::current_exe().context("this program")?,
        variants: variants(&config)?,
        qemu: config.qemu.path.clone(),
        kernel: config.guest.kernel.clone(),
        translation_buffer_mib: (tier == Tier::Emulated)
            .then_some(config.qemu.translation_buffer_mib),
    };
    casemate_bench::run(&subject, options)?;
    Ok(ExitCode::SUCCESS)
}

/// The ways in which a sandbox of this configuration can start.
fn variants(config: &Config) -> Result<Vec<Variant>> {
    Ok(vec![Variant {
        name: "casemate".to_owned(),
        configuration: Some(text(config)?),
        prepare: Vec::new(),
    }])
}

/// The whole configuration as a file, drop-ins and all.
fn text(config: &Config) -> Result<String> {
    toml::to_string(config).context("configuration")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_start_is_configured_as_the_host_is() {
        let mut config = Config::default();
        config
            .apply_text("test", "[machine]\nmemory_mib = 300\n[vmm]\nksm = \"on\"\n")
            .unwrap();
        for variant in variants(&config).unwrap() {
            let mut read = Config::default();
            let text = variant.configuration.unwrap();
            read.apply_text(&variant.name, &text).unwrap();
            assert_eq!(read, config);
        }
    }
}
