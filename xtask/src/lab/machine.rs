//! The emulated host: QEMU's command line, and the process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use casemate_linux::tsc;

use super::image::Image;
use crate::{command, workspace};

/// What the host is like.
#[derive(Clone, clap::Args)]
pub(crate) struct Settings {
    /// Processor of the host, as QEMU's -cpu takes it; another one shows what a broken path to
    /// KVM looks like: max,-svm
    #[arg(long, value_name = "MODEL", default_value = CPU)]
    cpu: String,
    /// Virtual processors of the host [default: 2, or 1 where QEMU is older than 8.1]
    #[arg(long, value_name = "COUNT")]
    vcpus: Option<u32>,
    /// Memory of the host, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory_mib: u32,
    /// Program that emulates the host [default: build/clients/qemu10 if it is there, else the one
    /// in PATH]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
}

/// All that can be emulated, SVM with nested paging too. Without five-level paging, whose walks
/// are the longest, and without fast string instructions, which are the slow ones here.
const CPU: &str = "max,-la57,-erms,-fsrm";

/// Size of the NVMe drive and of the NVDIMM, in MiB.
const EXTRA_MIB: u32 = 128;

/// The host's own files, below the folder of a lab.
pub(super) struct Files<'a> {
    pub(super) folder: &'a Path,
    pub(super) image: &'a Image,
    /// The disk with what is tested.
    pub(super) payload: &'a Path,
}

impl Files<'_> {
    pub(super) fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    pub(super) fn monitor(&self) -> PathBuf {
        self.folder.join("monitor.sock")
    }

    pub(super) fn process(&self) -> PathBuf {
        self.folder.join("qemu.pid")
    }

    fn drive(&self) -> PathBuf {
        self.folder.join("nvme.raw")
    }
}

/// Whether the machine ends with this process or goes on without it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Attached,
    Detached,
}

/// Starts the machine, whose port 22 is `port` here. Attached, its process is a child that dies
/// with this thread; detached, the child ends when the machine has begun.
pub(super) fn start(
    settings: &Settings,
    files: &Files<'_>,
    port: u16,
    life: Life,
) -> Result<Child> {
    let program = settings.program();
    let told = command::output(Command::new(&program).arg("--version"))?;
    let version = version(&told).context("QEMU tells no version")?;
    let vcpus = settings.vcpus.unwrap_or(safe_processors(version));
    let drive = File::create(files.drive()).context("the lab's drive")?;
    drive.set_len(u64::from(EXTRA_MIB) << 20)?;
    let log = File::create(files.folder.join("qemu.log")).context("QEMU's log")?;
    let mut machine = match life {
        Life::Attached => {
            let mut machine = Command::new("setpriv");
            machine.args(["--pdeathsig", "KILL", "--"]).arg(&program);
            machine
        }
        Life::Detached => {
            let mut machine = Command::new(&program);
            machine
                .arg("-daemonize")
                .arg("-pidfile")
                .arg(files.process());
            machine
        }
    };
    if let Some(modules) = modules(&program) {
        machine.env("QEMU_MODULE_DIR", modules);
    }
    machine
        .args(firmware(&program))
        .args(arguments(settings, vcpus, files, port))
        .args(adapter(version))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // What a terminal sends is for us, who end the machine in our own time.
        .process_group(0);
    machine
        .spawn()
        .with_context(|| format!("cannot run {}", command::shown(&machine)))
}

impl Settings {
    fn program(&self) -> PathBuf {
        let newest = workspace::build("clients").join("qemu10/usr/bin/qemu-system-x86_64");
        match &self.qemu {
            Some(program) => program.clone(),
            None if newest.exists() => newest,
            None => "qemu-system-x86_64".into(),
        }
    }
}

/// Before 8.1 a processor could go on executing the old translation of an instruction that
/// another one had just changed. Linux changes instructions whenever the first machine of KVM
/// comes and the last one goes, and then loops for ever over a breakpoint that is there no more.
fn safe_processors(version: (u32, u32)) -> u32 {
    if version >= (8, 1) { 2 } else { 1 }
}

/// Major and minor of "QEMU emulator version 10.0.2 (...)".
fn version(told: &str) -> Option<(u32, u32)> {
    let number = told.split("version ").nth(1)?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// An unpacked QEMU finds its firmware nowhere by itself.
fn firmware(program: &Path) -> Vec<OsString> {
    let prefix = program.parent().and_then(Path::parent);
    let folders = ["share/qemu", "share/seabios"].map(|name| prefix.map(|at| at.join(name)));
    folders
        .into_iter()
        .flatten()
        .filter(|folder| folder.is_dir())
        .flat_map(|folder| ["-L".into(), folder.into_os_string()])
        .collect()
}

/// Nor its modules: it would try those of the system's.
fn modules(program: &Path) -> Option<PathBuf> {
    let prefix = program.parent()?.parent()?;
    Some(prefix.join("lib/x86_64-linux-gnu/qemu")).filter(|folder| folder.is_dir())
}

fn arguments(settings: &Settings, vcpus: u32, files: &Files<'_>, port: u16) -> Vec<OsString> {
    let mut line: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: String| line.extend([name.into(), value.into()]);
    let disk = |path: &Path, id: &str, more: &str| {
        let path = path.to_string_lossy().replace(',', ",,");
        format!("file={path},if=none,format=raw,id={id}{more}")
    };
    let (memory, extra) = (settings.memory_mib, EXTRA_MIB);
    option("-display", "none".into());
    option("-name", "casemate-lab,debug-threads=on".into());
    option(
        "-machine",
        "q35,nvdimm=on,kernel-irqchip=split,graphics=off,usb=off".into(),
    );
    option("-accel", "tcg,thread=multi,tb-size=512".into());
    option("-cpu", settings.cpu.clone());
    option("-smp", vcpus.to_string());
    option(
        "-m",
        format!("{memory}M,slots=2,maxmem={}M", memory + 4 * extra),
    );
    option("-kernel", files.image.kernel().display().to_string());
    option("-initrd", files.image.initrd().display().to_string());
    option("-append", kernel_line());
    option("-serial", format!("file:{}", files.console().display()));
    option(
        "-monitor",
        format!("unix:{},server=on,wait=off", files.monitor().display()),
    );
    // Comes before the devices that it translates for.
    option("-device", "intel-iommu,intremap=on,caching-mode=on".into());
    // What is written is gone with the machine.
    option("-drive", disk(&files.image.disk(), "root", ",snapshot=on"));
    option("-device", "virtio-blk-pci,drive=root".into());
    option("-drive", disk(files.payload, "payload", ",readonly=on"));
    option("-device", "virtio-blk-pci,drive=payload".into());
    option("-drive", disk(&files.drive(), "nvme", ""));
    option("-device", "nvme,drive=nvme,serial=lab".into());
    option(
        "-object",
        format!("memory-backend-ram,id=nvdimm,size={extra}M"),
    );
    option("-device", "nvdimm,memdev=nvdimm".into());
    option("-object", "rng-builtin,id=entropy".into());
    option("-device", "virtio-rng-pci,rng=entropy".into());
    // Nothing but the channel: what runs there reaches no network.
    option(
        "-netdev",
        format!("user,id=channel,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
    );
    option("-device", "virtio-net-pci,netdev=channel".into());
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        line.push(flag.into());
    }
    line
}

fn kernel_line() -> String {
    let mut line = String::from(
        "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off no_timer_check intel_iommu=on \
         systemd.unified_cgroup_hierarchy=1",
    );
    // The translator passes this machine's counter through. A host that has to find out its rate
    // gives it up, and then every guest of it has to find out as well, each for seconds.
    if let Ok(khz) = tsc::rate_khz(tsc::WINDOW) {
        line += &format!(" tsc=reliable tsc_early_khz={khz}");
    }
    line
}

/// A network card with virtual functions, where QEMU has one.
fn adapter(version: (u32, u32)) -> Vec<OsString> {
    if version < (8, 0) {
        return Vec::new();
    }
    let words = [
        "-device",
        "pcie-root-port,id=adapter,chassis=1",
        "-netdev",
        "user,id=adapter-net,restrict=on",
        "-device",
        "igb,bus=adapter,netdev=adapter-net",
    ];
    words.map(OsString::from).to_vec()
}

/// Ends a detached machine and waits until it is gone; nothing if there is none.
pub(super) fn end_detached(pid_file: &Path) -> Result<()> {
    let Some(pid) = detached(pid_file) else {
        return Ok(());
    };
    let process = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).context("end the lab")?;
    for _ in 0..100 {
        if detached(pid_file).is_none() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    ensure!(
        detached(pid_file).is_none(),
        "process {pid} of the lab does not end"
    );
    Ok(())
}

/// The process of a detached machine, if it lives: a number alone may be somebody else's by now.
pub(super) fn detached(pid_file: &Path) -> Option<i32> {
    let pid = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line);
    line.contains(&*pid_file.to_string_lossy()).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_translator_has_one_processor() {
        let old = version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)").unwrap();
        assert_eq!((old, safe_processors(old)), ((7, 2), 1));
        let new = version("QEMU emulator version 10.0.2\n").unwrap();
        assert_eq!((new, safe_processors(new)), ((10, 0), 2));
        assert_eq!(safe_processors((8, 0)), 1);
    }
}
