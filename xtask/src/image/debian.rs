//! A minimal Debian of the machine's own release, with what the tests look at a container with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Recipe;
use crate::command;

/// Tools of the tests beside the essential packages.
const PACKAGES: &[&str] = &[
    "acl",
    "attr",
    "inotify-tools",
    "iproute2",
    "libcap2-bin",
    "nftables",
    "procps",
];

/// What a test image needs no copy of.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// One time for all files, so that equal packages give an equal layer.
const TIME: &str = "0";

pub(super) const COMMAND: &[&str] = &["/bin/bash"];

/// Essential packages of Debian, and more.
pub(super) struct Debian {
    pub(super) packages: &'static [&'static str],
    /// Patterns of files that are left out, beside what no image needs.
    pub(super) excluded: &'static [&'static str],
    /// A command of the shell that prepares the root `$1` before these packages are installed.
    pub(super) before_packages: Option<&'static str>,
}

const DEBIAN: Debian = Debian {
    packages: PACKAGES,
    excluded: &[],
    before_packages: None,
};

pub(super) fn recipe() -> Result<Recipe> {
    Ok(Recipe {
        name: "debian",
        ingredients: DEBIAN.ingredients()?,
        layer,
        command: COMMAND,
    })
}

fn layer(work: &Path) -> Result<PathBuf> {
    DEBIAN.layer(work)
}

impl Debian {
    /// Everything that the content depends on.
    pub(super) fn ingredients(&self) -> Result<String> {
        let mut all = format!("{} {:?} {EXCLUDED:?} {TIME}", codename()?, self.packages);
        if !self.excluded.is_empty() {
            all += &format!(" {:?}", self.excluded);
        }
        Ok(all + self.before_packages.unwrap_or_default())
    }

    /// Makes the layer in the folder.
    pub(super) fn layer(&self, work: &Path) -> Result<PathBuf> {
        let layer = work.join("layer.tar");
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap
            .env("SOURCE_DATE_EPOCH", TIME)
            .args(["--quiet", "--variant=minbase", "--skip=output/dev"])
            .arg(format!("--include={}", self.packages.join(",")));
        for pattern in EXCLUDED.iter().chain(self.excluded) {
            mmdebstrap.arg(format!("--dpkgopt=path-exclude={pattern}"));
        }
        if let Some(command) = self.before_packages {
            mmdebstrap.arg(format!("--essential-hook={command}"));
        }
        mmdebstrap.arg(codename()?).arg(&layer);
        if let Some(sources) = sources() {
            mmdebstrap.arg(sources);
        }
        command::output(&mut mmdebstrap)?;
        Ok(layer)
    }
}

/// The name of this machine's release, such as `bookworm`.
pub(crate) fn codename() -> Result<String> {
    let path = "/etc/os-release";
    let text = fs::read_to_string(path).context(path)?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_string())
        .with_context(|| format!("{path} names no VERSION_CODENAME"))
}

/// The machine's own list of archives: it may be a mirror that is near, or the only one reached.
pub(crate) fn sources() -> Option<&'static str> {
    [
        "/etc/apt/sources.list.d/debian.sources",
        "/etc/apt/sources.list",
    ]
    .into_iter()
    .find(|path| fs::metadata(path).is_ok_and(|file| file.len() > 0))
}
