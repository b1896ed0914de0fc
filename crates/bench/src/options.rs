//! The command line of `casemate bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Options of `casemate bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// What is measured.
    #[command(subcommand)]
    pub measurement: Measurement,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Measurement {
    /// Time of a whole `run` of `true`, and of create, start and delete
    Start(Start),
    /// Time of `exec ID true` in a container that runs
    Exec(Exec),
    /// Memory of idle sandboxes, and what they use of the processor
    Memory(Memory),
    /// Many starts at once: how many a second, and how long each takes
    Parallel(Parallel),
    /// Small files and streams in a volume of the container
    File(File),
    /// TCP streams and round trips through a bridge
    Network(Network),
}

impl Measurement {
    /// The options that all of them have.
    pub fn common(&self) -> &Common {
        match self {
            Self::Start(options) => &options.common,
            Self::Exec(options) => &options.common,
            Self::Memory(options) => &options.common,
            Self::Parallel(options) => &options.common,
            Self::File(options) => &options.common,
            Self::Network(options) => &options.common,
        }
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// A virtual machine of the same kernel and no more.
    Qemu,
    /// This runtime, as often as there are ways to start.
    Casemate,
    /// The runtime of that name.
    Crun,
    /// The runtime of that name.
    Runc,
    /// The runtime of that name: gVisor.
    Runsc,
}

/// Options of every measurement.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Runs of each, in turns
    #[arg(long, value_name = "N")]
    pub runs: Option<usize>,
    /// What to compare, separated by commas; one that is not installed is left out
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "qemu,casemate,crun,runc,runsc"
    )]
    pub runtimes: Vec<Name>,
    /// Write everything that was measured to FILE as JSON; without FILE to standard
    /// output, in place of the tables
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
    /// Draw the medians into FILE
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Root file system of the containers, with BusyBox at /bin/busybox; without it one
    /// is made of the host's, which has to be static
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,
}

impl Common {
    /// How often each is measured, where the measurement has its own habit.
    pub fn runs_or(&self, usual: usize) -> usize {
        self.runs.unwrap_or(usual)
    }

    /// Whether that one is to be measured.
    pub fn wants(&self, name: Name) -> bool {
        self.runtimes.contains(&name)
    }
}

/// Options of `start`.
#[derive(Debug, Args)]
pub struct Start {
    /// What all have.
    #[command(flatten)]
    pub common: Common,
    /// Measure `podman run` with Casemate and runc as well
    #[arg(long)]
    pub podman: bool,
    /// Measure starts beside that many sandboxes that run, such as 10,50
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    pub crowd: Vec<usize>,
    /// Measure the start and memory of each of that many containers of one pod
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub pod: usize,
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// What all have.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `memory`.
#[derive(Debug, Args)]
pub struct Memory {
    /// What all have.
    #[command(flatten)]
    pub common: Common,
    /// Sandboxes that run at once, to see what one more takes and what they use of the
    /// processor
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub sandboxes: usize,
    /// Seconds for which they are left alone, before and while their processor time is
    /// measured
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub seconds: u64,
}

/// Options of `parallel`.
#[derive(Debug, Args)]
pub struct Parallel {
    /// What all have.
    #[command(flatten)]
    pub common: Common,
    /// How many starts at once, each of these in turn
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        default_value = "1,2,4,8,16,32"
    )]
    pub counts: Vec<usize>,
}

/// Options of `file`.
#[derive(Debug, Args)]
pub struct File {
    /// What all have.
    #[command(flatten)]
    pub common: Common,
    /// Small files in a run
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub files: usize,
    /// MiB of the stream each way
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub stream_mib: usize,
}

/// Options of `network`.
#[derive(Debug, Args)]
pub struct Network {
    /// What all have.
    #[command(flatten)]
    pub common: Common,
    /// Seconds of each stream
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub seconds: u32,
    /// Round trips of each in a run
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub pings: u32,
}
