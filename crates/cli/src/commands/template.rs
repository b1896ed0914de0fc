//! `template`: make, list, show and delete templates, and make one in the
//! background for the next start.

mod show;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use casemate_config::{Config, Templates};
use casemate_hypervisor::qemu::{Qemu, Settings};
use casemate_sandbox::template::{self, Fit, Key, Made, Pruned, Store};
use tokio::task::LocalSet;

use crate::{
    arguments::{Global, TemplateVerb},
    log,
};

/// # Errors
/// For a bad configuration, a store that cannot be used, and a template that
/// cannot be made or is not there.
pub fn run(global: &Global, verb: &TemplateVerb) -> Result<ExitCode> {
    let config = Config::load(global.config.as_deref())?;
    let store = Store::at(&config.template.directory);
    match verb {
        TemplateVerb::Create => create(&config, &store),
        TemplateVerb::List { format } => show::list(&config, &store, *format),
        TemplateVerb::Show { format, key } => {
            show::one(&config, &store, &find(&store, key)?, *format)
        }
        TemplateVerb::Delete { all, keys } => delete(&store, *all, keys),
        TemplateVerb::Prune => prune(&config, &store),
    }
}

/// What `check` says: one line.
pub fn verdict(config: &Config) -> String {
    let place = config.template.directory.display();
    if config.template.mode == Templates::Off {
        return "off (template.mode): every machine boots".to_owned();
    }
    let said = || -> Result<String> {
        let store = Store::at(&config.template.directory);
        let list = store.list()?;
        let bytes = show::mib(list.iter().map(|one| one.bytes).sum());
        let fit = fit(config)?.1;
        let there = list
            .iter()
            .any(|one| one.key == *fit.key() && one.header.is_ok());
        let fitting = match (there, store.failure(fit.key())) {
            (true, _) => format!("{} fits", fit.key()),
            (false, None) => "the next start has one made".to_owned(),
            (false, Some(failure)) => format!("none could be made: {}", failure.reason),
        };
        Ok(format!("{fitting}; {} in {place}, {bytes}", list.len()))
    };
    said().unwrap_or_else(|error| format!("not used: {}", log::one_line(&error)))
}

/// Why there is no template, and which it would have been.
pub struct Failure {
    /// Unknown when not even that could be found out.
    pub key: Option<Key>,
    /// The reason.
    pub error: anyhow::Error,
    /// Somebody has killed the machine.
    pub is_kill: bool,
}

/// Makes the template for machines of this configuration.
///
/// # Errors
/// When there is none afterwards.
pub fn make(config: &Config) -> Result<Made, Failure> {
    let unknown = |error: anyhow::Error| Failure {
        key: None,
        error,
        is_kill: false,
    };
    let (hypervisor, fit) = fit(config).map_err(unknown)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")
        .map_err(unknown)?;
    let made = LocalSet::new().block_on(&runtime, template::make(&hypervisor, config));
    made.map_err(|error| Failure {
        key: Some(fit.key().clone()),
        is_kill: error.is_kill(),
        error: error.into(),
    })
}

/// What machines of this configuration begin with on this host.
fn fit(config: &Config) -> Result<(Qemu, Fit)> {
    let hypervisor = Qemu::open(&Settings::from(config))?;
    let fit = template::making::fit(&hypervisor, config)?;
    Ok((hypervisor, fit))
}

fn create(config: &Config, store: &Store) -> Result<ExitCode> {
    match make(config).map_err(|failure| failure.error)? {
        Made::New(header, pruned) => {
            println!(
                "made {key} in {took:?}, {trial:?} of it for a clone on trial: {vcpus} processors, {memory} MiB, of which {bytes} are in use",
                key = header.key,
                took = Duration::from_millis(header.took_ms),
                trial = Duration::from_millis(header.trial_ms),
                vcpus = header.vcpus,
                memory = header.memory_mib,
                bytes = show::mib(header.state.bytes + header.memory.bytes),
            );
            print_pruned(&pruned);
        }
        Made::There(header) => println!("{} is there already", header.key),
        Made::Elsewhere => bail!(
            "somebody else is making it at this moment: see `casemate template list`, and {}",
            store.root().join("maker.log").display()
        ),
    }
    Ok(ExitCode::SUCCESS)
}

fn find(store: &Store, text: &str) -> Result<Key> {
    let key: Key = text.parse()?;
    let list = store.list()?;
    match list.iter().any(|template| template.key == key) {
        true => Ok(key),
        false => bail!("no template {key} in {}", store.root().display()),
    }
}

fn delete(store: &Store, all: bool, keys: &[String]) -> Result<ExitCode> {
    let keys = match all {
        true => store.list()?.into_iter().map(|one| one.key).collect(),
        false => {
            let found = keys.iter().map(|key| find(store, key));
            found.collect::<Result<Vec<_>>>()?
        }
    };
    for key in keys {
        store.remove(&key)?;
        println!("{key}");
    }
    Ok(ExitCode::SUCCESS)
}

fn prune(config: &Config, store: &Store) -> Result<ExitCode> {
    let pruned = store.prune(u64::from(config.template.limit_mib) << 20, None)?;
    print_pruned(&pruned);
    Ok(ExitCode::SUCCESS)
}

fn print_pruned(pruned: &[Pruned]) {
    for Pruned { key, reason, bytes } in pruned {
        println!("removed {key}, {}: {reason}", show::mib(*bytes));
    }
}
