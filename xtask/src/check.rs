//! The checks that need no guest: format, lints, unit tests, policy on dependencies, scripts.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{command, workspace};

/// Options of `cargo xtask check`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Checks to run; all of them if none is named
    #[arg(value_enum)]
    checks: Vec<Check>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    /// Formatting
    Fmt,
    /// Lints, of which none may warn
    Clippy,
    /// Unit tests of every crate
    Test,
    /// Licences, advisories and sources of the dependencies
    Deny,
    /// Lints of the shell scripts
    Shell,
}

const ALL: [Check; 5] = [
    Check::Fmt,
    Check::Clippy,
    Check::Test,
    Check::Deny,
    Check::Shell,
];

/// Scripts, none of which has a name that tells.
const SCRIPTS: [&str; 5] = [
    "quickstart",
    "test",
    ".ci/run",
    "scripts/install.sh",
    "xtask/src/lab/host/facts",
];

/// Runs the checks one after the other and stops at the first that fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    for check in ALL {
        if options.checks.is_empty() || options.checks.contains(&check) {
            check.run()?;
        }
    }
    Ok(())
}

impl Check {
    fn run(self) -> Result<()> {
        match self {
            Self::Fmt => cargo(&["fmt", "--all", "--check"]),
            Self::Clippy => cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]),
            // The end-to-end tests need a guest and an installed binary: they have their own task.
            Self::Test => cargo(&[
                "test",
                "--workspace",
                "--no-fail-fast",
                "--exclude",
                "casemate-e2e",
            ]),
            Self::Deny => where_present("cargo-deny", || cargo(&["deny", "--workspace", "check"])),
            Self::Shell => where_present("shellcheck", shellcheck),
        }
    }
}

fn cargo(arguments: &[&str]) -> Result<()> {
    command::run(
        Command::new(env!("CARGO"))
            .current_dir(workspace::root())
            .args(arguments),
    )
}

fn where_present(program: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    if command::exists(program) {
        return check();
    }
    println!("skipped: {program} is not installed");
    Ok(())
}

fn shellcheck() -> Result<()> {
    let scripts: Vec<PathBuf> = SCRIPTS
        .iter()
        .map(|script| workspace::root().join(script))
        .collect();
    command::run(
        Command::new("shellcheck")
            .current_dir(workspace::root())
            .arg("--external-sources")
            .args(scripts),
    )
}
