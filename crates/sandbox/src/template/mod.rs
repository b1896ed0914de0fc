//! Templates: the saved state of a machine that has booted and knows no sandbox,
//! and the store in which they are.
//!
//! A start asks [`choose`]; where no template fits, a process in the background
//! ([`background`]) makes one ([`making`]) for the next start. Nothing of a
//! template is trusted that was not checked, and no start fails because of one.

pub mod background;
mod failure;
mod fit;
mod header;
pub mod making;
mod pages;
mod prune;
pub mod store;
mod workbench;
mod workplace;

use casemate_config::{self as config, Config};
use casemate_hypervisor::{Hypervisor, Size};

pub use background::Templates;
pub use failure::Failure;
pub use fit::{BadKey, Fit, Identity, Key};
pub use header::{Header, Part};
pub use making::{Made, make};
pub use prune::{Pruned, Reason};
pub use store::{Found, Listed, Store, Unfit};

use crate::settings::size_of;

/// What a start begins from.
#[derive(Debug)]
pub(crate) enum Choice {
    /// From this template.
    Clone(Box<Found>),
    /// From nothing; a template would have fitted.
    Missing(Key),
    /// From nothing.
    Boot,
}

/// Chooses for a machine of `config`, when templates are of this size. What is
/// wrong with the store is in the log.
pub(crate) fn choose(hypervisor: &dyn Hypervisor, config: &Config, template: Size) -> Choice {
    let grown = hypervisor.capabilities().grown;
    if config.template.mode == config::Templates::Off
        || !can_become(template, size_of(&config.machine), grown)
    {
        return Choice::Boot;
    }
    look(hypervisor, &of_size(config, template)).unwrap_or_else(|error| {
        tracing::warn!("started without a template: {error}");
        Choice::Boot
    })
}

fn look(hypervisor: &dyn Hypervisor, config: &Config) -> Result<Choice, making::Error> {
    let fit = making::fit(hypervisor, config)?;
    let store = Store::at(&config.template.directory);
    Ok(match store.find(&fit)? {
        Some(found) => Choice::Clone(Box::new(found)),
        None => Choice::Missing(fit.key().clone()),
    })
}

/// The configuration for a template's own machine.
pub fn of_size(config: &Config, size: Size) -> Config {
    let mut config = config.clone();
    config.machine.vcpus = size.vcpus;
    config.machine.memory_mib = size.memory_mib;
    config
}

/// Machines grow, and never become smaller.
fn can_become(template: Size, wanted: Size, grown: Size) -> bool {
    let part =
        |template, wanted, grown| template <= wanted && (wanted == template || wanted <= grown);
    part(template.vcpus, wanted.vcpus, grown.vcpus)
        && part(template.memory_mib, wanted.memory_mib, grown.memory_mib)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use casemate_hypervisor::fake::Fake;

    use super::*;
    use crate::{settings::size_of, template::workplace::Workplace};

    const fn size(vcpus: u32, memory_mib: u32) -> Size {
        Size { vcpus, memory_mib }
    }

    #[test]
    fn machines_grow_as_far_as_they_can() {
        let grown = size(4, 1024);
        let template = size(2, 256);
        for (wanted, expected) in [
            (size(2, 256), true),
            (size(3, 256), true),
            (size(4, 1024), true),
            (size(1, 256), false),
            (size(2, 128), false),
            (size(5, 256), false),
            (size(2, 1025), false),
        ] {
            assert_eq!(can_become(template, wanted, grown), expected, "{wanted:?}");
        }
        // A template that is larger than what machines grow to still fits itself.
        assert!(can_become(size(8, 256), size(8, 256), grown));
        assert!(!can_become(size(8, 256), size(9, 256), grown));
    }

    /// A configuration whose files are in `folder`.
    fn config(folder: &std::path::Path) -> Config {
        let mut config = Config::default();
        let file = folder.join("file");
        fs::write(&file, "of the guest").unwrap();
        config.guest.kernel.clone_from(&file);
        config.guest.initrd = file;
        config.template.directory = folder.join("templates");
        config
    }

    #[test]
    fn a_start_begins_from_what_fits() {
        let folder = tempfile::Builder::new().prefix("t").tempdir().unwrap();
        let mut config = config(folder.path());
        let template = size_of(&config.machine);
        let fake = Fake::new();
        let fit = making::fit(&fake, &config).unwrap();
        let Choice::Missing(missing) = choose(&fake, &config, template) else {
            panic!("there is none");
        };
        assert_eq!(missing, *fit.key());
        let store = Store::at(&config.template.directory);
        let place = Workplace::claim(&store, fit.key()).unwrap().unwrap();
        let files = place.files().unwrap();
        let [state, memory] = place.parts(&files).unwrap();
        let header = Header {
            state,
            memory,
            ..header::tests::header(&fit)
        };
        place.finish(&header).unwrap();
        let key_of_clone = |config: &Config| match choose(&fake, config, template) {
            Choice::Clone(found) => Some(found.header.key),
            Choice::Missing(_) | Choice::Boot => None,
        };
        let key = Some(fit.key().clone());
        assert_eq!(key_of_clone(&config), key);
        // One that is to grow begins from the same.
        config.machine.vcpus += 1;
        config.machine.memory_mib += 100;
        assert_eq!(key_of_clone(&config), key);
        config.machine.vcpus = 100;
        assert!(matches!(choose(&fake, &config, template), Choice::Boot));
        config.machine.vcpus = template.vcpus;
        config.machine.hotplug_slots += 1;
        assert!(matches!(
            choose(&fake, &config, template),
            Choice::Missing(_)
        ));
        config.machine.hotplug_slots -= 1;
        config.template.mode = config::Templates::Off;
        assert!(matches!(choose(&fake, &config, template), Choice::Boot));
    }

    #[test]
    fn nothing_that_is_wrong_with_the_store_fails_a_start() {
        let folder = tempfile::Builder::new().prefix("t").tempdir().unwrap();
        let mut config = config(folder.path());
        let template = size_of(&config.machine);
        let fake = Fake::new();
        fs::write(&config.template.directory, "no folder").unwrap();
        assert!(matches!(choose(&fake, &config, template), Choice::Boot));
        fs::remove_file(&config.template.directory).unwrap();
        assert!(matches!(
            choose(&Fake::failing_at(1), &config, template),
            Choice::Boot
        ));
        config.guest.kernel = folder.path().join("missing");
        assert!(matches!(choose(&fake, &config, template), Choice::Boot));
    }
}
