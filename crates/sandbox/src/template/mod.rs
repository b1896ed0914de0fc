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
    Missing(Fit),
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
        None => Choice::Missing(fit),
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
