//! What runs inside every virtual machine: kernel and initrd.

mod agent;
mod fragments;
mod holes;
mod kernel;
mod patches;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use casemate_bench::cpio;

use crate::{bench, cache, workspace};

/// Options of `cargo xtask guest`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build the kernel only
    #[arg(long, conflicts_with = "initrd")]
    kernel: bool,
    /// Build the initrd only
    #[arg(long)]
    initrd: bool,
    /// Archive of the Linux source to build, in place of the distribution's package
    #[arg(long, value_name = "TAR")]
    source: Option<PathBuf>,
}

/// Builds what is asked for and puts it into `build/guest`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = workspace::build("guest");
    if !options.initrd {
        install_kernel(options.source.as_deref(), &folder)?;
    }
    if !options.kernel {
        install_initrd(&folder)?;
    }
    Ok(())
}

fn install_kernel(archive: Option<&Path>, folder: &Path) -> Result<()> {
    let (kernel, fresh) = kernel::obtain(archive)?;
    cache::install(&kernel.image(), &folder.join("vmlinux"))?;
    cache::install(&kernel.symbols(), &folder.join("System.map"))?;
    cache::install(&kernel.config(), &folder.join("config"))?;
    cache::install(&kernel.version(), &folder.join("version"))?;
    let version = fs::read_to_string(kernel.version())?;
    println!("guest kernel: {}", version.trim().replace('\n', ", "));
    tell_size(&folder.join("vmlinux"))?;
    if fresh {
        bench::boot::run(&bench::boot::Options::default())?;
    }
    Ok(())
}

fn install_initrd(folder: &Path) -> Result<()> {
    let agent = agent::build()?;
    let program = fs::read(&agent).with_context(|| format!("{}", agent.display()))?;
    let path = folder.join("initrd.cpio");
    write(&path, &cpio::archive(&program))?;
    tell_size(&path)
}

/// Replaces `path` at one stroke.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    let fresh = path.with_extension("fresh");
    fs::create_dir_all(path.parent().context("a file has a folder")?)?;
    fs::write(&fresh, content).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("cannot replace {}", path.display()))
}

fn tell_size(path: &Path) -> Result<()> {
    let size = fs::metadata(path)?.len() as f64 / f64::from(1 << 20);
    println!("{}: {size:.1} MiB", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_agent_gives_the_same_bytes() {
        assert_eq!(
            cache::sha256(&cpio::archive(b"agent")),
            "c359dbcfbeb3a0dfeb16f5ada86f53134cac6a866e775262fc8947dfe8bd5824"
        );
    }
}
