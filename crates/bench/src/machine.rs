//! A bare virtual machine: QEMU with the machine, the kernel and the options that
//! sandboxes have, and nothing else. What others are compared with.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{Subject, command, cpio, probe};

/// The options of the board that sandboxes have.
pub const Q35: &[&str] = &["-machine", Q35_WITHOUT, "-bios", "qboot.rom"];

/// The board, with what is not on it.
pub const Q35_WITHOUT: &str = "q35,memory-backend=ram,mem-merge=off,hpet=off,smbus=off,sata=off,\
                               i8042=off,vmport=off,smm=off,usb=off,graphics=off";

/// What all machines have.
const ARGUMENTS: &[&str] = &[
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

const PARAMETERS: &str = "quiet panic=-1 reboot=t nr_cpus=1";

/// What the kernel need not find out, and what is slow under emulation.
const EMULATED: &str = "no_timer_check tsc=reliable lapic_timer_khz=1000000 keep_initmem";

const CANNOT_RUN: &str = "cannot run QEMU";

/// A bare machine that can be booted any number of times.
#[derive(Debug, Clone)]
pub struct Bare {
    qemu: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    accelerator: Vec<String>,
    parameters: String,
}

/// Moments of one boot, counted from before the VMM's start.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// The VMM has built the machine and lets it run.
    pub vmm: Duration,
    /// Init asked for a reboot.
    pub init: Duration,
}

impl Bare {
    /// With an init that ends the machine at once; its files are put into `folder`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn that_ends(subject: &Subject, folder: &Path) -> Result<Self> {
        let init = probe::program(probe::ENDS);
        Self::new(subject, folder.join("ends.cpio"), &cpio::archive(&init))
    }

    /// With an init that waits for ever.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn that_waits(subject: &Subject, folder: &Path) -> Result<Self> {
        let init = probe::program(probe::WAITS);
        Self::new(subject, folder.join("waits.cpio"), &cpio::archive(&init))
    }

    /// With an initrd, which is written to `path`.
    pub(crate) fn new(subject: &Subject, path: PathBuf, initrd: &[u8]) -> Result<Self> {
        fs::write(&path, initrd).with_context(|| path.display().to_string())?;
        let (accelerator, parameters) = match subject.translation_buffer_mib {
            // Strings that copy by bytes are slow when each byte is emulated. As sandboxes
            // have it: a translator that takes care of barriers.
            Some(buffer) => (
                format!("-accel tcg,tb-size={buffer} -cpu max,-erms,-fsrm -smp 1,maxcpus=2"),
                format!("{PARAMETERS} {EMULATED} tsc_early_khz={}", rate_khz()?),
            ),
            None => (
                "-accel kvm -cpu host -smp 1".to_owned(),
                PARAMETERS.to_owned(),
            ),
        };
        Ok(Self {
            qemu: subject.qemu.clone(),
            kernel: subject.kernel.clone(),
            initrd: path,
            accelerator: accelerator.split(' ').map(str::to_owned).collect(),
            parameters,
        })
    }

    /// Boots to init, which ends the machine, and waits for the end of QEMU.
    ///
    /// # Errors
    /// When the guest does not reach its init.
    pub fn boot(&self, board: &[&str]) -> Result<Boot> {
        let start = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let mut qemu = self
            .command(board)
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
            bail!("bare QEMU: the guest did not reach its init ({status})");
        }
        Ok(boot)
    }

    /// Starts the machine with more arguments; it goes on until what is returned is
    /// dropped. It has a session of its own, as the machine of a sandbox has: the scheduler
    /// shares processors out among sessions.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Machine> {
        let line = self.command(Q35);
        let mut process = Command::new("setsid")
            .arg(line.get_program())
            .args(line.get_args())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context(CANNOT_RUN)?;
        resume(&mut process)?;
        Ok(Machine { process })
    }

    fn command(&self, board: &[&str]) -> Command {
        let mut qemu = Command::new(&self.qemu);
        qemu.args(board)
            .args(&self.accelerator)
            .args(ARGUMENTS)
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .arg("-append")
            .arg(&self.parameters);
        qemu
    }
}

/// A machine that runs. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    process: Child,
}

impl Machine {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.process.kill().is_ok() {
            let _ = self.process.wait();
        }
    }
}

/// Why there can be no bare machine, if so.
pub(crate) fn missing(subject: &Subject) -> Option<String> {
    let program = &subject.qemu;
    let found = program.is_file() || program.to_str().is_some_and(command::exists);
    (!found).then(|| format!("{} is not installed", program.display()))
}

fn rate_khz() -> Result<u64> {
    casemate_linux::tsc::rate_khz(Duration::from_millis(50)).context("rate of the clock")
}

/// Lets the machine run.
fn resume(qemu: &mut Child) -> Result<()> {
    let control = qemu.stdin.as_mut().context("QEMU has an input")?;
    control.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\"}\n")?;
    Ok(())
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
