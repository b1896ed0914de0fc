//! `bench`: this runtime measured beside others, by the crate of that name.

use std::process::ExitCode;

use anyhow::{Context, Result};
use casemate_bench::{Options, Subject, Variant};
use casemate_config::{Config, Templates, Tier};
use casemate_hypervisor::{
    Hypervisor,
    qemu::{Qemu, Settings},
};

use crate::arguments::Global;

/// The span of a start that was no boot.
const CLONE: &str = "clone of ";

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

/// The ways in which a sandbox of this configuration can start: booted, and as a clone of a
/// template, which is made before anything is measured.
fn variants(config: &Config) -> Result<Vec<Variant>> {
    let variant = |name: &str, mode, prepare: &[&str], span| -> Result<Variant> {
        let mut config = config.clone();
        config.template.mode = mode;
        Ok(Variant {
            name: name.to_owned(),
            configuration: Some(text(&config)?),
            prepare: prepare.iter().copied().map(str::to_owned).collect(),
            span,
        })
    };
    Ok(vec![
        variant("casemate cold", Templates::Off, &[], None)?,
        variant(
            "casemate warm",
            Templates::Auto,
            &["template", "create"],
            Some(CLONE),
        )?,
    ])
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
            config.template.mode = read.template.mode;
            assert_eq!(read, config);
        }
    }
}
