//! The package archive of a release that need not be this machine's, asked through apt with a
//! state of its own: what the machine would install stays as it is.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{cache, command};

/// The keys that sign every release of Debian.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How old lists of packages may be: newer ones may mean a newer engine.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// The archive of one release.
pub(super) struct Archive {
    release: &'static str,
    state: PathBuf,
}

impl Archive {
    /// The archive of `release`, with lists that are not old. Old ones have to do where there
    /// is no network.
    pub(super) fn of(release: &'static str) -> Result<Archive> {
        let state = cache::root().join("archive").join(release);
        let archive = Archive { release, state };
        if archive.is_fresh() {
            return Ok(archive);
        }
        let updated = archive.update();
        if updated.is_err() && archive.stamp().exists() {
            return Ok(archive);
        }
        updated.map(|()| archive)
    }

    /// The version of a package that the release has.
    pub(super) fn candidate(&self, package: &str) -> Result<String> {
        let mut policy = self.apt("apt-cache");
        policy.env("LC_ALL", "C").args(["policy", package]);
        let text = command::output(&mut policy)?;
        let mut lines = text.lines();
        let version = lines.find_map(|line| line.trim().strip_prefix("Candidate: "));
        let version = version.filter(|version| *version != "(none)");
        let version = version.with_context(|| format!("{} has no {package}", self.release))?;
        Ok(version.to_owned())
    }

    /// Puts the packages' files into `folder`.
    pub(super) fn download(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let mut download = self.apt("apt-get");
        download.current_dir(folder).args(["--quiet=2", "download"]);
        command::output(download.args(packages))?;
        Ok(())
    }

    /// Fetches the lists.
    pub(super) fn update(&self) -> Result<()> {
        self.configure()?;
        command::output(self.apt("apt-get").args(["--quiet=2", "update"]))?;
        File::create(self.stamp()).with_context(|| self.stamp().display().to_string())?;
        Ok(())
    }

    fn is_fresh(&self) -> bool {
        let age = fs::metadata(self.stamp())
            .and_then(|file| file.modified())
            .map(|time| time.elapsed().unwrap_or_default());
        age.is_ok_and(|age| age < FRESH)
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.env("APT_CONFIG", self.configuration());
        apt
    }

    /// Writes what makes apt see nothing of the machine's but what is installed: apt.conf(5).
    fn configure(&self) -> Result<()> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = self.state.join(folder);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let mut text = String::new();
        for (key, place) in [
            ("Dir::Etc::SourceList", self.sources()),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::Etc::Preferences", "/dev/null".into()),
            ("Dir::Etc::PreferencesParts", "/dev/null".into()),
            ("Dir::State::Lists", self.state.join("lists")),
            ("Dir::Cache", self.state.join("cache")),
        ] {
            writeln!(text, "{key} \"{}\";", place.display())?;
        }
        // Names and versions are all that is asked for, and half an answer is none.
        text += "Acquire::Languages \"none\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 APT::Update::Error-Mode \"any\";\n";
        fs::write(self.configuration(), text)?;
        let keys = if Path::new(KEYS).exists() {
            format!("[signed-by={KEYS}] ")
        } else {
            String::new()
        };
        let source = format!("deb {keys}{} {} main\n", mirror()?, self.release);
        Ok(fs::write(self.sources(), source)?)
    }

    fn configuration(&self) -> PathBuf {
        self.state.join("apt.conf")
    }

    fn sources(&self) -> PathBuf {
        self.state.join("sources.list")
    }

    /// As old as the lists.
    fn stamp(&self) -> PathBuf {
        self.state.join("updated")
    }
}

/// Where this machine has its own release from; the others are beside it.
fn mirror() -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)"]);
    targets.args(["Created-By: Packages", "Component: main"]);
    let listed = command::output(&mut targets)?;
    let system = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    from_release(&listed, &system).context("apt's configuration names no archive of this release")
}

/// The address in lines of `<release> <address>` that belongs to the release which the text of
/// os-release(5) names, or to one by its place in time (`stable`): that has no hyphen, as
/// additions to a release have (`bookworm-updates`).
fn from_release(listed: &str, system: &str) -> Option<String> {
    let codename = system
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let entries: Vec<(&str, &str)> = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let exact = entries.iter().find(|(name, _)| Some(*name) == codename);
    let whole = || entries.iter().find(|(name, _)| !name.contains('-'));
    exact.or_else(whole).map(|(_, uri)| (*uri).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: &str = "ID=debian\nVERSION_CODENAME=bookworm\n";

    #[test]
    fn the_mirror_is_that_of_the_release() {
        let listed = "bookworm-security http://mirror/security/\n\
                      other http://elsewhere/\nbookworm http://mirror/debian/\n";
        let found = from_release(listed, SYSTEM);
        assert_eq!(found.as_deref(), Some("http://mirror/debian/"));
    }

    #[test]
    fn a_release_may_be_named_by_its_place_in_time() {
        let listed = "stable-updates http://a/\nstable http://b/\n";
        assert_eq!(from_release(listed, SYSTEM).as_deref(), Some("http://b/"));
        assert_eq!(from_release("stable-updates http://a/\n", SYSTEM), None);
    }
}
