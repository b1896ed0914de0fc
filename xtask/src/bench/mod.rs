//! Measurements that developers need beside those of `casemate bench`, which users have.

pub(crate) mod boot;
mod docs;
mod overhead;
mod pod;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use casemate_bench::{Subject, Variant};
use clap::{Args, Subcommand};

use crate::workspace;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Subcommand)]
enum Measurement {
    /// Time from the VMM's start to the guest's init, for each kind of machine
    Boot(boot::Options),
    /// Memory and processor time of an idle pod, for the overhead of a RuntimeClass
    Overhead(overhead::Options),
    /// A pod's start and `ctr run` by containerd, beside runc; memory of an idle pod
    Pod(pod::Options),
    /// Everything of docs/performance.md: its tables and charts are made anew
    Docs(docs::Options),
}

/// Runs one measurement and prints its table.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.measurement {
        Measurement::Boot(options) => boot::run(options),
        Measurement::Overhead(options) => overhead::run(options),
        Measurement::Pod(options) => pod::run(options),
        Measurement::Docs(options) => docs::run(options),
    }
}

/// The option that says which Casemate is measured.
#[derive(Args)]
struct Program {
    /// The runtime to measure
    #[arg(long, value_name = "FILE", default_value = "/usr/local/bin/casemate")]
    casemate: PathBuf,
}

impl Program {
    /// Its absolute path: Podman takes a relative one for a name.
    fn path(&self) -> Result<PathBuf> {
        std::fs::canonicalize(&self.casemate).with_context(|| self.casemate.display().to_string())
    }
}

/// A runtime with the kernel of this checkout, as the host's configuration has it otherwise.
fn subject(casemate: PathBuf, kernel: Option<&Path>) -> Subject {
    Subject {
        casemate,
        variants: vec![variant()],
        qemu: "qemu-system-x86_64".into(),
        kernel: match kernel {
            Some(kernel) => kernel.to_owned(),
            None => workspace::build("guest").join("vmlinux"),
        },
        translation_buffer_mib: Some(64),
    }
}

/// As the host configures it.
fn variant() -> Variant {
    Variant {
        name: "casemate".to_owned(),
        configuration: None,
        prepare: Vec::new(),
        span: None,
    }
}
