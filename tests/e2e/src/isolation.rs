//! The place of one scenario: a mount namespace with an empty `/run`.
//!
//! The state of runtimes and clients is below `/run` (and podman's locks are
//! in `/dev/shm`), so a scenario sees neither the machine's containers nor
//! those of other scenarios, and what is mounted goes away with its last
//! process. To the programs it is the machine as it is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

/// Puts the calling process, which must have one thread only, into its place.
pub(crate) fn enter() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("die with the suite")?;
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace (the suite needs root)")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("mounts made private")?;
    let resolver = fs::read("/run/systemd/resolve/stub-resolv.conf");
    memory("/run", "mode=0755")?;
    memory("/dev/shm", "mode=1777")?;
    if let Ok(text) = resolver {
        // /etc/resolv.conf may be a link to it, and clients read that.
        fs::create_dir_all("/run/systemd/resolve")?;
        fs::write("/run/systemd/resolve/stub-resolv.conf", text)?;
    }
    Ok(())
}

fn memory(at: &str, options: &str) -> Result<()> {
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options),
    )
    .with_context(|| format!("a tmpfs at {at}"))
}

/// Mounts a tmpfs of so many bytes for a scenario that needs a full disk.
pub fn small_disk(at: &Path, bytes: u64) -> Result<()> {
    let at = at.to_str().context("a path in UTF-8")?;
    memory(at, &format!("size={bytes}"))
}
