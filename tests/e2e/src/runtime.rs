//! The runtimes a scenario is run with, and where they are.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

/// Which runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The reference: what it does is what a client expects.
    Runc,
    /// The runtime under test.
    Casemate,
}

impl Kind {
    /// Every kind, in the order in which the scenarios are listed.
    pub const ALL: [Kind; 2] = [Kind::Runc, Kind::Casemate];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Runc => "runc",
            Kind::Casemate => "casemate",
        })
    }
}

/// A runtime that is on this machine.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Which one.
    pub kind: Kind,
    /// Its program, absolute: clients call it without a search path.
    pub path: PathBuf,
}

impl Runtime {
    /// Finds the program, or says why there is none.
    pub fn find(kind: Kind) -> Result<Runtime, String> {
        let path = match kind {
            Kind::Runc => {
                in_search_path("runc").ok_or_else(|| "runc is not installed".to_owned())?
            }
            Kind::Casemate => casemate()?,
        };
        Ok(Runtime { kind, path })
    }

    /// Whether its containers run in a virtual machine.
    pub fn is_vm(&self) -> bool {
        self.kind == Kind::Casemate
    }

    /// The folder of all its state: below it are the roots of command line and shim.
    pub(crate) fn state(&self) -> &'static Path {
        Path::new(match self.kind {
            Kind::Runc => "/run/runc",
            Kind::Casemate => "/run/casemate",
        })
    }

    /// Where it keeps the state of its containers unless `--root` says otherwise.
    pub fn default_root(&self) -> &'static Path {
        Path::new(match self.kind {
            Kind::Runc => "/run/runc",
            Kind::Casemate => "/run/casemate/oci",
        })
    }
}

fn casemate() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("CASEMATE_BIN") {
        // Tests run in their package's folder, and nobody types paths from there.
        let path = checkout().join(path);
        return match path.canonicalize() {
            Ok(found) if found.is_file() => Ok(found),
            _ => Err(format!("CASEMATE_BIN: {} is not a file", path.display())),
        };
    }
    let built = checkout().join("target/release/casemate");
    if built.is_file() {
        return Ok(built);
    }
    in_search_path("casemate").ok_or_else(|| {
        format!(
            "casemate: no {} and none in PATH; build it or set CASEMATE_BIN",
            built.display()
        )
    })
}

/// The top of the checkout this suite was built from.
pub fn checkout() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_owned()
}

/// The program `name`, looked for as a shell would and in the folders of the
/// administrator, which are not always in a user's path.
pub(crate) fn in_search_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
