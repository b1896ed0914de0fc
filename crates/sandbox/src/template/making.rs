//! A template is made: a machine boots, its agent makes itself ready to be
//! saved, and what belongs to one sandbox is taken out.

use std::{
    fs::File,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use casemate_config::Config;
use casemate_hypervisor::{DeviceId, Error as VmError, Hypervisor, TemplateFiles};
use casemate_protocol::agent as message;
use tokio::time::timeout;

use super::{
    fit::{self, FORMAT, Fit},
    header::Header,
    prune::Pruned,
    store::{self, Store, digest},
    workplace::Workplace,
};
use crate::{
    agent::{self, Agent},
    machine::{self, Devices, End, Sockets, boot_spec, guest_cid},
    settings::size_of,
    share::Share,
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
        let end = match self {
            Self::Hypervisor(VmError::Ended(exit)) => &End::from(exit.clone()),
            Self::Machine(machine::Error::Hypervisor(VmError::Ended(exit))) => {
                &End::from(exit.clone())
            }
            Self::Machine(machine::Error::Ended(end)) => end,
            _ => return false,
        };
        end.killed
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
    let files = place.files()?;
    save(hypervisor, config, place.path(), &files).await?;
    if self::fit(hypervisor, config)? != fit {
        return Err(Error::Changed);
    }
    let header = describe(config, &fit, &place, &files, begun)?;
    drop(files);
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

/// Boots a machine in `directory` and writes it into the files.
async fn save(
    hypervisor: &dyn Hypervisor,
    config: &Config,
    directory: &Path,
    files: &TemplateFiles,
) -> Result<(), Error> {
    let share = Share::open(directory).map_err(machine::Error::from)?;
    let sockets = Sockets::make(directory)?;
    // It boots without files, whose back end waits for the end of this one.
    let (back_ends, _files, vsock) = sockets.back_ends()?;
    let served = sockets.serve(
        &back_ends,
        &Devices {
            share: share.path(),
            guest_cid: guest_cid(),
            cache: config.share.cache,
        },
    );
    let devices = served.map_err(machine::Error::from)?;
    let mut spec = boot_spec(config, size_of(&config.machine), true, directory)
        .map_err(machine::Error::from)?;
    spec.vsock = Some(vsock);
    let vm = hypervisor.boot(spec).await?;
    tokio::select! {
        biased;
        end = machine::end_of(vm.as_ref(), &devices) => return Err(machine::Error::Ended(end).into()),
        ready = make_ready(config, &sockets) => ready?,
    }
    vm.unplug(&DeviceId::VSOCK).await?;
    Ok(vm.snapshot(files).await?)
}

/// Tells the agent that it will be saved. It waits for the end of this connection
/// before it lets the device go.
async fn make_ready(config: &Config, sockets: &Sockets) -> Result<(), Error> {
    let limit = Duration::from_secs(config.vmm.boot_timeout_s.into());
    let called = timeout(limit, sockets.call()).await;
    let connection = called.map_err(|_| machine::Error::Silent(limit))??;
    let limit = Duration::from_secs(config.agent.timeout_s.into());
    let (agent, _) = Agent::greet(connection, limit).await?;
    agent.become_template(&message::Empty::default()).await?;
    Ok(())
}

fn describe(
    config: &Config,
    fit: &Fit,
    place: &Workplace,
    files: &TemplateFiles,
    begun_ns: u64,
) -> Result<Header, Error> {
    let [state, memory] = place.parts(files)?;
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
        made_by: concat!("casemate ", env!("CARGO_PKG_VERSION")).to_owned(),
        state,
        memory,
        kernel_sha256: contents(&config.guest.kernel)?,
        initrd_sha256: contents(&config.guest.initrd)?,
    })
}
