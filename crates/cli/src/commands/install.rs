//! `install`: tells a client that this runtime is there, and takes it back.
//!
//! Clients that read drop-ins (Podman, CRI-O) get a file of our own. Docker and
//! containerd have one file for everything, of which only our keys are touched.
//! A client's part says what is to be in which file; what is there already and
//! what is to be done about it is found out here, for all of them.

mod containerd;
mod docker;
mod drop_in;

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};

use crate::arguments::{Client, Install};

/// The name under which clients know the runtime.
const NAME: &str = "casemate";

/// # Errors
/// When a file cannot be read, understood or replaced; it is as before then.
pub fn run(arguments: &Install) -> Result<ExitCode> {
    let binary = std::env::current_exe().context("path of this program")?;
    let plan = plan(arguments, &binary)?;
    let changes: Vec<&Change> = plan.changes.iter().filter(|c| c.is_needed()).collect();
    if changes.is_empty() {
        let place = plan.changes.first().map(Change::path);
        let state = match arguments.undo {
            true => "not installed",
            false => "installed already",
        };
        println!("{}: {state}", place.unwrap_or(Path::new("")).display());
    }
    for change in &changes {
        change.make(arguments.dry_run)?;
    }
    if !changes.is_empty()
        && let Some(hint) = plan.next_step
    {
        println!("then: {hint}");
    }
    if !arguments.undo {
        println!("try: {}", plan.example);
        for remark in plan.remarks {
            println!("note: {remark}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be on the disk, and what a person should know.
struct Plan {
    /// The first one is what the client reads.
    changes: Vec<Change>,
    /// How the client learns of it.
    next_step: Option<&'static str>,
    example: String,
    /// What the client does without the runtime all the same.
    remarks: Vec<&'static str>,
}

fn plan(arguments: &Install, binary: &Path) -> Result<Plan> {
    let text = binary
        .to_str()
        .context("the path of this program is not UTF-8")?;
    // It goes into quoted strings of three formats.
    ensure!(
        !text.contains(['"', '\\', '\n']),
        "{text:?}: move this program to a path without quotes"
    );
    match arguments.client {
        Client::Podman => drop_in::podman(arguments, text),
        Client::Crio => drop_in::crio(arguments, text),
        Client::Docker => docker::plan(arguments, text),
        Client::Containerd => containerd::plan(arguments, binary),
    }
}

/// One place of the disk.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// A file's content; none is no file.
    File {
        path: PathBuf,
        before: Option<String>,
        after: Option<String>,
    },
    /// A symbolic link's target; none is no link.
    Link {
        path: PathBuf,
        before: Option<PathBuf>,
        after: Option<PathBuf>,
    },
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } | Self::Link { path, .. } => path,
        }
    }

    fn is_needed(&self) -> bool {
        match self {
            Self::File { before, after, .. } => before != after,
            Self::Link { before, after, .. } => before != after,
        }
    }

    /// Makes it at one stroke, and says so.
    fn make(&self, dry_run: bool) -> Result<()> {
        let name = self.path().display();
        let (would, did, text) = match self {
            Self::File {
                after: Some(text), ..
            } => ("write", "wrote", format!(":\n{text}")),
            Self::Link {
                after: Some(target),
                ..
            } => ("make", "made", format!(", a link to {}", target.display())),
            Self::File { .. } | Self::Link { .. } => ("remove", "removed", String::new()),
        };
        if dry_run {
            println!("would {would} {name}{text}");
            return Ok(());
        }
        self.carry_out().with_context(|| name.to_string())?;
        println!("{did} {name}");
        Ok(())
    }

    fn carry_out(&self) -> io::Result<()> {
        let path = self.path();
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".casemate-new");
        match self {
            Self::File { after: None, .. } | Self::Link { after: None, .. } => {
                return fs::remove_file(path);
            }
            Self::File {
                after: Some(text), ..
            } => {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                fs::write(&fresh, text)?;
                // The permissions of what is there stay.
                if let Ok(old) = fs::metadata(path) {
                    fs::set_permissions(&fresh, old.permissions())?;
                }
            }
            Self::Link {
                after: Some(target),
                ..
            } => {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                symlink(target, &fresh)?;
            }
        }
        fs::rename(&fresh, path)
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).with_context(|| path.display().to_string()),
    }
}

/// The target of a symbolic link, none where there is nothing.
fn read_link(path: &Path) -> Result<Option<PathBuf>> {
    match fs::read_link(path) {
        Ok(target) => Ok(Some(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(_) => bail!(
            "{}: is not a link; move it away, then run this again",
            path.display()
        ),
    }
}

#[cfg(test)]
fn arguments(client: Client, etc: &Path, default: bool) -> Install {
    Install {
        client,
        etc: etc.to_owned(),
        bin: etc.join("bin"),
        default,
        undo: false,
        dry_run: false,
    }
}
