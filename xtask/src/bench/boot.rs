//! How long an emulated guest takes from the VMM's start to its init.
//!
//! The guest's init asks for a reboot at once, at which QEMU stops and says when: no console
//! and no clock of the guest's is in the way.

use std::path::PathBuf;

use anyhow::Result;
use casemate_bench::machine::{Bare, Q35, Q35_WITHOUT};

/// Options of `cargo xtask bench boot`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Boots of each machine, of which the median is shown
    #[arg(long, default_value_t = RUNS)]
    runs: usize,
    /// Kernel to boot, in place of build/guest/vmlinux
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
}

const RUNS: usize = 5;

impl Default for Options {
    fn default() -> Self {
        Self {
            runs: RUNS,
            kernel: None,
        }
    }
}

/// A kind of machine, without devices that have back ends of their own.
struct Machine {
    name: &'static str,
    board: &'static [&'static str],
}

const MACHINES: [Machine; 3] = [
    Machine {
        name: "q35",
        board: Q35,
    },
    Machine {
        name: "q35, SeaBIOS",
        board: &["-machine", Q35_WITHOUT],
    },
    Machine {
        name: "microvm",
        board: &["-machine", "microvm,pcie=on,memory-backend=ram"],
    },
];

/// Boots each machine several times and prints the medians.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let subject = super::subject(PathBuf::new(), options.kernel.as_deref());
    let bare = Bare::that_ends(&subject, folder.path())?;
    println!(
        "machine        VMM ready   init reached (median of {}; fastest, slowest)",
        options.runs
    );
    for machine in &MACHINES {
        let mut boots = (0..options.runs)
            .map(|_| bare.boot(machine.board))
            .collect::<Result<Vec<_>>>()?;
        boots.sort_by_key(|boot| boot.init);
        let median = &boots[boots.len() / 2];
        println!(
            "{:14} {:>7.3} s   {:>7.3} s   ({:.3}, {:.3})",
            machine.name,
            median.vmm.as_secs_f64(),
            median.init.as_secs_f64(),
            boots[0].init.as_secs_f64(),
            boots[boots.len() - 1].init.as_secs_f64(),
        );
    }
    Ok(())
}
