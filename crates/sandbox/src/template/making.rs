//! A template is made: a machine boots, its agent makes itself ready to be
//! saved, and what belongs to one sandbox is taken out. Nobody sees one of which no
//! clone has come up.

use std::{
    fs::File,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use casemate_config::Config;
use casemate_hypervisor::{Error as VmError, Hypervisor, TemplateFiles};

use super::{
    fit::{self, FORMAT, Fit},
    header::Header,
    prune::Pruned,
    store::{self, Store, digest},
    workbench::Workbench,
    workplace::Workplace,
};
use crate::{
    agent,
    machine::{self, End, boot_spec},
    settings::size_of,
    timeline::now_ns,
};

/// What came of it.
#[derive(Debug)]
pub enum Made {
    /// A new one, and what had to go.
    New(Header, Vec<Pruned>),
    /// There is one already.
    There(Header),
    /// Somebody else is making it.
    Elsewhere,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A file that it depends on.
    #[error(transparent)]
    Fit(#[from] fit::Error),
    /// The machine or its sockets.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// A call to the guest.
    #[error("the guest cannot be saved: {0}")]
    Agent(#[from] agent::Error),
    /// The VMM.
    #[error(transparent)]
    Hypervisor(#[from] casemate_hypervisor::Error),
    /// It is of no use.
    #[error("no clone of what was saved comes up, a second one neither: {0}")]
    Trial(#[source] machine::Error),
    /// Kernel, initrd or program were replaced meanwhile.
    #[error("what the machine begins with has changed while it was saved")]
    Changed,
    /// It would be removed at once.
    #[error(
        "a template of this machine takes {mib} MiB, and template.limit_mib allows {limit_mib}"
    )]
    TooLarge {
        /// MiB that it takes.
        mib: u64,
        /// As configured.
        limit_mib: u32,
    },
}

impl Error {
    /// Somebody has killed the machine, which says nothing of the next try.
    pub fn is_kill(&self) -> bool {
        match self {
            Self::Hypervisor(VmError::Ended(exit)) => End::from(exit.clone()).killed,
            Self::Machine(error) => is_kill(error),
            _ => false,
        }
    }
}

fn is_kill(error: &machine::Error) -> bool {
    match error {
        machine::Error::Hypervisor(VmError::Ended(exit)) => End::from(exit.clone()).killed,
        machine::Error::Ended(end) => end.killed,
        _ => false,
    }
}

/// What a machine of this configuration begins with.
///
/// # Errors
/// When kernel, initrd or hypervisor cannot be looked at.
pub fn fit(hypervisor: &dyn Hypervisor, config: &Config) -> Result<Fit, Error> {
    // What differs from sandbox to sandbox is no part of a recipe.
    let spec = boot_spec(config, size_of(&config.machine), true, Path::new("/"))
        .map_err(machine::Error::from)?;
    let recipe = hypervisor.recipe(&spec)?;
    Ok(Fit::of(&recipe, &config.guest)?)
}

/// Makes the template for machines of this configuration, unless it is there or
/// somebody else is at it. To be called by a process of its own, which gets a
/// mount namespace of its own.
///
/// # Errors
/// When there is none afterwards; nothing is left then.
pub async fn make(hypervisor: &dyn Hypervisor, config: &Config) -> Result<Made, Error> {
    let store = Store::at(&config.template.directory);
    let fit = fit(hypervisor, config)?;
    if let Some(found) = store.find(&fit)? {
        return Ok(Made::There(found.header));
    }
    let Some(place) = Workplace::claim(&store, fit.key())? else {
        return Ok(Made::Elsewhere);
    };
    // It may have been finished between the two.
    if let Some(found) = store.find(&fit)? {
        return Ok(Made::There(found.header));
    }
    let begun = now_ns();
    let saved = save_and_try(hypervisor, config, &place).await?;
    if self::fit(hypervisor, config)? != fit {
        return Err(Error::Changed);
    }
    let header = describe(config, &fit, &place, &saved, begun)?;
    drop(saved);
    let limit = u64::from(config.template.limit_mib) << 20;
    let bytes = header.state.bytes + header.memory.bytes;
    if bytes > limit {
        return Err(Error::TooLarge {
            mib: bytes.div_ceil(1 << 20),
            limit_mib: config.template.limit_mib,
        });
    }
    place.finish(&header)?;
    store.forget_failure(fit.key())?;
    let pruned = store.prune(limit, Some(fit.key()))?;
    Ok(Made::New(header, pruned))
}

/// A machine that was saved.
struct Saved {
    files: TemplateFiles,
    /// How long it took until a clone of it had come up.
    trial: Duration,
}

/// Saves a machine of which a clone comes up. Where none does, that may have been bad
/// luck once.
async fn save_and_try(
    hypervisor: &dyn Hypervisor,
    config: &Config,
    place: &Workplace,
) -> Result<Saved, Error> {
    let mut bench = Workbench::set_up(config, place.path())?;
    let mut again = false;
    loop {
        let files = place.files()?;
        bench.save(hypervisor, &files).await?;
        match bench.try_clone(hypervisor, place.opened()?).await {
            Ok(trial) => return Ok(Saved { files, trial }),
            Err(error) if is_kill(&error) => return Err(error.into()),
            Err(error) if again => return Err(Error::Trial(error)),
            Err(error) => tracing::warn!("made anew, as no clone of it came up: {error}"),
        }
        place.discard()?;
        bench.clear()?;
        again = true;
    }
}

fn describe(
    config: &Config,
    fit: &Fit,
    place: &Workplace,
    saved: &Saved,
    begun_ns: u64,
) -> Result<Header, Error> {
    let [state, memory] = place.parts(&saved.files)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let contents = |path: &Path| -> Result<String, Error> {
        let read = File::open(path).and_then(|file| digest(&file));
        Ok(read.map_err(store::failed(path))?)
    };
    Ok(Header {
        version: FORMAT,
        key: fit.key().clone(),
        fits: fit.text().to_owned(),
        ground: fit.ground().clone(),
        vcpus: config.machine.vcpus,
        memory_mib: config.machine.memory_mib,
        created_s: now.map_or(0, |since| since.as_secs()),
        took_ms: (now_ns() - begun_ns) / 1_000_000,
        trial_ms: saved.trial.as_millis() as u64,
        made_by: concat!("casemate ", env!("CARGO_PKG_VERSION")).to_owned(),
        state,
        memory,
        kernel_sha256: contents(&config.guest.kernel)?,
        initrd_sha256: contents(&config.guest.initrd)?,
    })
}
