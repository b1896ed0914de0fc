//! How long an emulated guest takes from the VMM's start to its init.
//!
//! The guest's init asks for a reboot at once, at which QEMU stops and says when: no console
//! and no clock of the guest's is in the way.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cache, command, guest, workspace};

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
    arguments: &'static [&'static str],
}

const MACHINES: [Machine; 3] = [
    Machine {
        name: "q35",
        arguments: &["-machine", Q35, "-bios", "qboot.rom"],
    },
    Machine {
        name: "q35, SeaBIOS",
        arguments: &["-machine", Q35],
    },
    Machine {
        name: "microvm",
        arguments: &["-machine", "microvm,pcie=on,memory-backend=ram"],
    },
];

const Q35: &str = "q35,memory-backend=ram,hpet=off,smbus=off,sata=off,i8042=off,vmport=off,\
                   smm=off,usb=off,graphics=off";

/// What all machines have. Strings that copy by bytes are slow when each byte is emulated.
const ARGUMENTS: &[&str] = &[
    "-accel",
    "tcg",
    "-cpu",
    "max,-erms,-fsrm",
    // As sandboxes have it: a translator that takes care of barriers.
    "-smp",
    "1,maxcpus=2",
    "-m",
    "256M",
    "-object",
    "memory-backend-memfd,id=ram,size=256M,share=on",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
    "-qmp",
    "stdio",
    // Stopped until told to go on, which gives the moment at which the VMM is ready.
    "-S",
];

/// What the kernel need not find out, and what is slow under emulation.
const PARAMETERS: &str = "quiet panic=-1 reboot=t no_timer_check tsc=reliable \
                          lapic_timer_khz=1000000 keep_initmem nr_cpus=1";

/// Boots each machine several times and prints the medians.
pub(crate) fn run(options: &Options) -> Result<()> {
    let kernel = match &options.kernel {
        Some(kernel) => kernel.clone(),
        None => workspace::build("guest").join("vmlinux"),
    };
    let initrd = probe()?;
    let rate = casemate_linux::tsc::rate_khz(Duration::from_millis(50))?;
    println!(
        "machine        VMM ready   init reached (median of {}; fastest, slowest)",
        options.runs
    );
    for machine in &MACHINES {
        let mut boots = (0..options.runs)
            .map(|_| boot(machine, &kernel, &initrd, rate))
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

/// The boot that others are compared with: the machine that sandboxes have, the same kernel,
/// nothing else.
pub(crate) struct Bare {
    kernel: PathBuf,
    initrd: PathBuf,
    rate: u64,
}

impl Bare {
    /// With an init that ends the machine.
    pub(crate) fn new() -> Result<Self> {
        Self::with(probe()?)
    }

    /// With another initrd.
    pub(crate) fn with(initrd: PathBuf) -> Result<Self> {
        Ok(Self {
            kernel: workspace::build("guest").join("vmlinux"),
            initrd,
            rate: casemate_linux::tsc::rate_khz(Duration::from_millis(50))?,
        })
    }

    /// Boots to init, which ends the machine, and waits for the end of QEMU.
    pub(crate) fn boot(&self) -> Result<()> {
        boot(&MACHINES[0], &self.kernel, &self.initrd, self.rate).map(drop)
    }

    /// Starts the machine with more arguments; it goes on until it is killed. It has a session
    /// of its own, as the machine of a sandbox has: the scheduler shares processors out among
    /// sessions.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Child> {
        let qemu = qemu(&MACHINES[0], &self.kernel, &self.initrd, self.rate);
        let mut qemu = Command::new("setsid")
            .arg(qemu.get_program())
            .args(qemu.get_args())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context(CANNOT_RUN)?;
        resume(&mut qemu)?;
        Ok(qemu)
    }
}

/// An initrd whose init reboots, built once.
fn probe() -> Result<PathBuf> {
    let source = workspace::root().join("guest/probe.c");
    let text = fs::read(&source).with_context(|| format!("{}", source.display()))?;
    let mut ingredients = cache::Ingredients::default();
    ingredients.add("source", text);
    let folder = cache::obtain("probe", &ingredients.digest(), |folder| {
        let program = folder.join("init");
        command::output(
            Command::new("gcc")
                .args([
                    "-Os",
                    "-static",
                    "-nostdlib",
                    "-no-pie",
                    "-fno-stack-protector",
                    "-o",
                ])
                .arg(&program)
                .arg(&source),
        )?;
        let archive = guest::archive(&fs::read(&program)?);
        Ok(fs::write(folder.join("initrd.cpio"), archive)?)
    })?;
    Ok(folder.join("initrd.cpio"))
}

/// Moments of one boot, counted from before the VMM's start.
struct Boot {
    /// The VMM has built the machine and lets it run.
    vmm: Duration,
    /// Init asked for a reboot.
    init: Duration,
}

const CANNOT_RUN: &str = "cannot run qemu-system-x86_64";

fn qemu(machine: &Machine, kernel: &Path, initrd: &Path, rate: u64) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(machine.arguments)
        .args(ARGUMENTS)
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        .arg(format!("{PARAMETERS} tsc_early_khz={rate}"));
    qemu
}

/// Lets the machine run.
fn resume(qemu: &mut Child) -> Result<()> {
    let control = qemu.stdin.as_mut().context("QEMU has an input")?;
    control.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\"}\n")?;
    Ok(())
}

fn boot(machine: &Machine, kernel: &Path, initrd: &Path, rate: u64) -> Result<Boot> {
    let start = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut qemu = qemu(machine, kernel, initrd, rate)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(CANNOT_RUN)?;
    resume(&mut qemu)?;
    let events = qemu.stdout.take().context("QEMU has an output")?;
    let mut boot = Boot {
        vmm: Duration::ZERO,
        init: Duration::ZERO,
    };
    for line in BufReader::new(events).lines() {
        let message: Value = serde_json::from_str(&line?)?;
        match message["event"].as_str() {
            Some("RESUME") => boot.vmm = moment(&message)?.saturating_sub(start),
            Some("SHUTDOWN") => boot.init = moment(&message)?.saturating_sub(start),
            _ => {}
        }
    }
    let status = qemu.wait()?;
    if !status.success() || boot.init.is_zero() {
        bail!(
            "{}: the guest did not reach its init ({status})",
            machine.name
        );
    }
    Ok(boot)
}

/// When QEMU says an event happened.
fn moment(event: &Value) -> Result<Duration> {
    let part = |name: &str| {
        event["timestamp"][name]
            .as_u64()
            .context("an event has a time")
    };
    Ok(Duration::from_secs(part("seconds")?) + Duration::from_micros(part("microseconds")?))
}
