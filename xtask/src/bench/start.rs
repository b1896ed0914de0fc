//! What a start costs: the whole `run --rm true` of Casemate beside those of runc and crun, and
//! beside a bare boot of the same kernel in QEMU. All in one go, taking turns, so that the
//! ratios hold on a noisy machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::boot;
use crate::{command, workspace};

/// Options of `cargo xtask bench start`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Runs of each, of which the median is shown
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// The runtime to measure
    #[arg(long, value_name = "FILE", default_value = "/usr/local/bin/casemate")]
    casemate: PathBuf,
}

/// Something whose start is measured.
struct Contender {
    name: String,
    start: Box<dyn Fn() -> Result<()>>,
    times: Vec<Duration>,
}

impl Contender {
    fn new(name: &str, start: impl Fn() -> Result<()> + 'static) -> Self {
        Self {
            name: name.to_owned(),
            start: Box::new(start),
            times: Vec::new(),
        }
    }

    fn measure(&mut self) -> Result<()> {
        let begin = Instant::now();
        (self.start)().with_context(|| self.name.clone())?;
        self.times.push(begin.elapsed());
        Ok(())
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut times = self.times.clone();
        times.sort();
        times
    }

    fn median(&self) -> Duration {
        let times = self.sorted();
        times[times.len() / 2]
    }
}

/// Measures and prints a table, the split of one start, and what an idle sandbox weighs.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.runs > 0, "--runs: at least one");
    // Podman takes a relative path for a name.
    let options = &Options {
        casemate: fs::canonicalize(&options.casemate)
            .with_context(|| options.casemate.display().to_string())?,
        ..*options
    };
    let folder = tempfile::tempdir()?;
    let bundle = bundle(folder.path())?;
    let mut contenders = contenders(options, &bundle, folder.path())?;
    for contender in &mut contenders {
        // The first one fills caches and counts for nobody.
        contender.measure()?;
        contender.times.clear();
    }
    for run in 1..=options.runs {
        for contender in &mut contenders {
            contender.measure()?;
        }
        eprint!("\rrun {run} of {}", options.runs);
    }
    eprintln!();
    print_table(&contenders);
    idle_sandbox(options, &bundle, folder.path())
}

fn contenders(options: &Options, bundle: &Path, folder: &Path) -> Result<Vec<Contender>> {
    let bare = boot::Bare::new()?;
    let mut contenders = vec![Contender::new(
        "bare QEMU boot to init and exit",
        move || bare.boot(),
    )];
    let mut oci = |name: &str, runtime: Launcher| {
        let (bundle, root) = (bundle.to_owned(), folder.join(format!("{name}-state")));
        contenders.push(Contender::new(&format!("{name} run true"), move || {
            command::output(&mut runtime.run(&root, &bundle, "bench")).map(drop)
        }));
    };
    oci("casemate", Launcher::Plain(options.casemate.clone()));
    for name in ["runc", "crun"] {
        match usable(name, bundle, folder) {
            Ok(launcher) => oci(name, launcher),
            Err(error) => println!("{name} is left out: {}", first_line(&error)),
        }
    }
    let engine = Podman::new(folder)?;
    for (name, runtime) in [
        ("casemate", options.casemate.clone()),
        ("runc", "/usr/sbin/runc".into()),
    ] {
        if !command::exists("podman") || !runtime.exists() {
            println!("podman with {name} is left out: not installed");
            continue;
        }
        let engine = engine.clone();
        contenders.push(Contender::new(
            &format!("podman run --rm true, {name}"),
            move || engine.run(&runtime),
        ));
    }
    Ok(contenders)
}

/// How a runtime is called.
#[derive(Clone)]
enum Launcher {
    Plain(PathBuf),
    /// Where it does not see the cgroup v2 hierarchy beside those of v1: crun refuses to work
    /// with both.
    WithoutUnified(PathBuf),
}

impl Launcher {
    fn command(&self) -> Command {
        match self {
            Launcher::Plain(runtime) => Command::new(runtime),
            Launcher::WithoutUnified(runtime) => {
                let hide = "umount --lazy /sys/fs/cgroup/unified && exec \"$0\" \"$@\"";
                let mut line = Command::new("unshare");
                line.args(["--mount", "sh", "-c", hide]).arg(runtime);
                line
            }
        }
    }

    fn run(&self, root: &Path, bundle: &Path, id: &str) -> Command {
        let mut line = self.command();
        line.arg("--root").arg(root);
        line.args(["run", "--bundle"]).arg(bundle).arg(id);
        line
    }
}

/// A way in which a runtime works here, if there is one.
fn usable(name: &str, bundle: &Path, folder: &Path) -> Result<Launcher> {
    let root = folder.join("try");
    let plain = Launcher::Plain(name.into());
    let refusal = match command::output(&mut plain.run(&root, bundle, "try")) {
        Ok(_) => return Ok(plain),
        Err(error) => error,
    };
    let mut delete = plain.command();
    delete.arg("--root").arg(&root);
    let _ = command::output(delete.args(["delete", "--force", "try"]));
    let hidden = Launcher::WithoutUnified(name.into());
    match command::output(&mut hidden.run(&root, bundle, "try")) {
        Ok(_) => Ok(hidden),
        Err(_) => Err(refusal),
    }
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}")
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn print_table(contenders: &[Contender]) {
    let base = contenders[0].median().as_secs_f64();
    println!(
        "{:34} {:>9} {:>9} {:>9} {:>12}",
        "", "median", "fastest", "slowest", "x bare boot"
    );
    for contender in contenders {
        let times = contender.sorted();
        println!(
            "{:34} {:>7.3} s {:>7.3} s {:>7.3} s {:>12.2}",
            contender.name,
            contender.median().as_secs_f64(),
            times[0].as_secs_f64(),
            times[times.len() - 1].as_secs_f64(),
            contender.median().as_secs_f64() / base,
        );
    }
}

/// A bundle with busybox alone, whose program is `true`.
fn bundle(folder: &Path) -> Result<PathBuf> {
    let bundle = folder.join("bundle");
    let rootfs = bundle.join("rootfs");
    for directory in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(rootfs.join(directory))?;
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("/bin/busybox")?;
    for name in ["true", "sleep"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name))?;
    }
    command::output(Command::new("runc").args(["spec", "--bundle"]).arg(&bundle))?;
    set_program(&bundle, &["true"])?;
    Ok(bundle)
}

fn set_program(bundle: &Path, args: &[&str]) -> Result<()> {
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(args);
    // The caller may not have the right to more.
    spec["process"]["rlimits"] = json!([]);
    Ok(fs::write(path, serde_json::to_vec(&spec)?)?)
}

/// Podman with a storage of its own.
#[derive(Clone)]
struct Podman {
    folder: PathBuf,
}

impl Podman {
    fn new(folder: &Path) -> Result<Self> {
        let podman = Self {
            folder: folder.join("podman"),
        };
        fs::create_dir_all(&podman.folder)?;
        fs::write(
            podman.folder.join("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\n",
        )?;
        if command::exists("podman") {
            let image = workspace::build("images").join("busybox.tar");
            command::output(
                podman
                    .line()
                    .args(["load", "--quiet", "--input"])
                    .arg(image),
            )?;
        }
        Ok(podman)
    }

    fn line(&self) -> Command {
        let mut line = Command::new("podman");
        line.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        for (option, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            line.arg(option).arg(self.folder.join(name));
        }
        line
    }

    fn run(&self, runtime: &Path) -> Result<()> {
        let mut line = self.line();
        line.arg("--runtime")
            .arg(runtime)
            .args(["run", "--rm", "--network", "none"]);
        line.args(["localhost/casemate/busybox", "true"]);
        command::output(&mut line).map(drop)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Podman leaves its storage mounted on itself.
        let _ = Command::new("umount")
            .arg(self.folder.join("root/overlay"))
            .stderr(Stdio::null())
            .status();
    }
}

/// Where the time of one start goes, and what its processes weigh afterwards.
fn idle_sandbox(options: &Options, bundle: &Path, folder: &Path) -> Result<()> {
    set_program(bundle, &["sleep", "1000"])?;
    let casemate = || {
        let mut line = Command::new(&options.casemate);
        line.arg("--root").arg(folder.join("idle"));
        line
    };
    let started = command::run_silently(
        casemate()
            .args(["run", "--detach", "--bundle"])
            .arg(bundle)
            .arg("idle"),
    );
    let shown = started.and_then(|()| {
        std::thread::sleep(Duration::from_secs(2));
        println!("\nwhere the time of one start goes:");
        print!(
            "{}",
            command::output(casemate().args(["timeline", "idle"]))?
        );
        println!("\nproportional set size of an idle sandbox, by process:");
        print_weights(&folder.join("idle/idle/ledger"), &options.casemate, folder)
    });
    command::output(casemate().args(["delete", "--force", "idle"]))?;
    shown
}

/// The processes whose command line or parent belongs to the sandbox.
fn print_weights(ledger: &Path, casemate: &Path, folder: &Path) -> Result<()> {
    let mut pids = Vec::new();
    for line in fs::read_to_string(ledger)?.lines() {
        let entry: Value = serde_json::from_str(line)?;
        if entry["kind"] == "process" {
            let pid = entry["pid"].as_u64().context("a process has an id")?;
            pids.push((entry["role"].as_str().unwrap_or_default().to_owned(), pid));
        }
    }
    let state = command::output(
        Command::new(casemate)
            .arg("--root")
            .arg(folder.join("idle"))
            .args(["state", "idle"]),
    )?;
    let state: Value = serde_json::from_str(&state)?;
    pids.push((
        "stand-in".to_owned(),
        state["pid"].as_u64().context("state has a pid")?,
    ));
    pids.push(("monitor".to_owned(), monitor_of("idle")?));
    let mut sum = 0;
    for (role, pid) in pids {
        let kib = pss_kib(pid)?;
        sum += kib;
        println!("  {role:10} {:>7.1} MiB", kib as f64 / 1024.0);
    }
    println!("  {:10} {:>7.1} MiB", "all", sum as f64 / 1024.0);
    Ok(())
}

/// The monitor is in no ledger: it is the one who keeps it.
fn monitor_of(id: &str) -> Result<u64> {
    let wanted = ["casemate", "monitor", "--id", id];
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0).take(wanted.len());
        if words.eq(wanted.map(str::as_bytes)) {
            return Ok(pid);
        }
    }
    bail!("the monitor of {id} is not running")
}

fn pss_kib(pid: u64) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context(path)?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
