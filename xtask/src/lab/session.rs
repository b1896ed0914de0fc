//! A lab that runs: booted, spoken to, booted again when it hangs, and gone in the end.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::channel::{self, Channel, End};
use super::image::Image;
use super::machine::{self, Files, Life, Settings};
use super::payload;
use crate::workspace;

/// How long the host may take to let one in, and to say that it is there.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
const ANSWER_LIMIT: Duration = Duration::from_secs(45);
const MOUNT_LIMIT: Duration = Duration::from_secs(120);

/// How long QEMU's monitor may need for an answer while its processors are busy.
const MONITOR_SILENCE: Duration = Duration::from_secs(10);

/// Where labs have their files; one lab at a time.
pub(super) fn folder() -> PathBuf {
    workspace::build("lab")
}

/// A running lab. An attached one ends when this goes.
pub(super) struct Lab {
    folder: PathBuf,
    settings: Settings,
    image: Image,
    machine: Option<Child>,
    /// QEMU's own, of an attached machine.
    monitor: Option<UnixStream>,
    channel: Channel,
    boots: u32,
    /// Held, so that two labs do not write the same files.
    _only: Flock<File>,
}

impl Lab {
    /// Builds what is missing and boots.
    pub(super) fn boot(settings: &Settings, life: Life) -> Result<Lab> {
        let folder = folder();
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let only = File::create(folder.join("lock")).context("the lock of the lab")?;
        let only = Flock::lock(only, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| errno)
            .context("another lab of this checkout is running")?;
        ensure!(
            machine::detached(&folder.join("qemu.pid")).is_none(),
            "a lab is up already\nhint: cargo xtask lab down"
        );
        let image = Image::obtain()?;
        let key = image.key();
        let mut lab = Lab {
            folder,
            settings: settings.clone(),
            image,
            machine: None,
            monitor: None,
            channel: Channel { port: 0, key },
            boots: 0,
            _only: only,
        };
        lab.start(life)?;
        Ok(lab)
    }

    /// The channel of the lab that `up` has left running, if there is one.
    pub(super) fn running() -> Result<Option<Channel>> {
        let folder = folder();
        if machine::detached(&folder.join("qemu.pid")).is_none() {
            return Ok(None);
        }
        let port = fs::read_to_string(folder.join("port")).context("the lab's port")?;
        let key = Image::obtain()?.key();
        let port = port.trim().parse().context("the lab's port")?;
        Ok(Some(Channel { port, key }))
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// How often this lab was booted.
    pub(super) fn boots(&self) -> u32 {
        self.boots
    }

    /// Boots a host that hangs once more; what its console and its processors had to say is kept.
    pub(super) fn boot_again(&mut self) -> Result<()> {
        let ended = match &mut self.machine {
            Some(machine) => machine.try_wait()?,
            None => None,
        };
        let what = match ended {
            Some(status) => format!("the host has ended by itself ({status})"),
            None => "the host hangs".to_owned(),
        };
        let state = self.ask_monitor("info status\ninfo registers -a\n");
        self.end();
        let console = self.folder.join("console.log");
        let mut text = fs::read(&console).unwrap_or_default();
        text.extend(b"\n--- what QEMU says of the processors\n");
        text.extend(state);
        let kept = self.folder.join(format!("console-hung-{}.log", self.boots));
        fs::write(&kept, text).with_context(|| kept.display().to_string())?;
        println!("lab: {what}; its console is in {}", kept.display());
        self.start(Life::Attached)
    }

    fn start(&mut self, life: Life) -> Result<()> {
        let begin = Instant::now();
        self.boots += 1;
        self.channel.port = channel::free_port()?;
        let payload = self.folder.join(PAYLOAD);
        payload::build(&self.folder, &payload)?;
        let files = Files {
            folder: &self.folder,
            image: &self.image,
            payload: &payload,
        };
        let child = machine::start(&self.settings, &files, self.channel.port, life)?;
        self.machine = Some(child);
        if life == Life::Detached {
            self.wait_until_detached()?;
        }
        self.wait_for_answer(begin + BOOT_LIMIT)?;
        match self.channel.run(&payload::mount(), MOUNT_LIMIT)? {
            End::Code(0) => {}
            other => bail!("the lab cannot take what is tested: {other:?}"),
        }
        // QEMU has them open: however this process ends, no name of them stays.
        clear(&self.folder, &DISKS);
        if life == Life::Attached {
            let monitor = self.folder.join(MONITOR);
            self.monitor = Some(UnixStream::connect(monitor).context("QEMU's monitor")?);
            clear(&self.folder, &[MONITOR]);
        }
        println!("lab: booted in {:.0} s", begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn wait_until_detached(&mut self) -> Result<()> {
        let mut child = self.machine.take().context("the machine was started")?;
        let status = child.wait().context("QEMU")?;
        ensure!(status.success(), "QEMU: {status}: {}", self.said());
        let port = self.channel.port.to_string();
        fs::write(self.folder.join("port"), port).context("the lab's port")
    }

    fn wait_for_answer(&mut self, deadline: Instant) -> Result<()> {
        loop {
            if self.channel.answers(ANSWER_LIMIT) {
                return Ok(());
            }
            if let Some(machine) = &mut self.machine
                && let Some(status) = machine.try_wait()?
            {
                bail!("the lab's host ended: {status}: {}", self.said());
            }
            ensure!(
                Instant::now() < deadline,
                "the lab's host did not come up in {} s; the end of its console:\n{}",
                BOOT_LIMIT.as_secs(),
                tail(&self.folder.join("console.log"), 20)
            );
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn said(&self) -> String {
        let log = tail(&self.folder.join("qemu.log"), 5);
        format!("{log}\n{}", tail(&self.folder.join("console.log"), 20))
    }

    /// What QEMU's monitor answers until it has been silent for some seconds.
    fn ask_monitor(&mut self, commands: &str) -> Vec<u8> {
        let mut answer = Vec::new();
        if let Some(mut monitor) = self.monitor.take() {
            let limit = Some(MONITOR_SILENCE);
            let asked = monitor
                .set_read_timeout(limit)
                .and_then(|()| monitor.write_all(commands.as_bytes()));
            if asked.is_ok() {
                // It goes on until the limit, since a monitor does not end.
                let _ = monitor.read_to_end(&mut answer);
            }
        }
        answer
    }

    fn end(&mut self) {
        if let Some(mut machine) = self.machine.take() {
            // It may have ended by itself.
            let _ = machine.kill();
            let _ = machine.wait();
            // The names that a boot which failed has left.
            clear(&self.folder, &DISKS);
            clear(&self.folder, &[MONITOR]);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ends the lab that `up` has left running.
pub(super) fn down() -> Result<()> {
    let folder = folder();
    machine::end_detached(&folder.join("qemu.pid"))?;
    clear(&folder, &DISKS);
    clear(&folder, &["qemu.pid", "port", MONITOR]);
    Ok(())
}

const PAYLOAD: &str = "payload.ext4";
const MONITOR: &str = "monitor.sock";

/// Have a name until the host has booted.
const DISKS: [&str; 2] = [PAYLOAD, "nvme.raw"];

fn clear(folder: &Path, names: &[&str]) {
    for name in names {
        // Not every lab has each.
        let _ = fs::remove_file(folder.join(name));
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
