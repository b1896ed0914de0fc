//! Servers as people run them, and the clients that load them: a web server, a cache and a
//! database from Debian's packages.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Recipe;
use super::debian::{self, Debian};

const PACKAGES: &[&str] = &[
    "nginx-light",
    "postgresql",
    "redis-server",
    "redis-tools",
    "wrk",
];

/// PostgreSQL's compiler of queries, which needs a hundred megabytes and is of use for long ones.
const EXCLUDED: &[&str] = &[
    "/usr/lib/*/libLLVM*",
    "/usr/lib/llvm-*",
    "/usr/lib/postgresql/*/lib/bitcode/*",
    "/usr/lib/postgresql/*/lib/llvmjit*",
    "/usr/share/i18n/*",
];

/// Whoever starts the database makes its cluster.
const NO_CLUSTER: &str = "mkdir -p \"$1/etc/postgresql-common\" && \
     echo create_main_cluster=false >\"$1/etc/postgresql-common/createcluster.conf\"";

const DEBIAN: Debian = Debian {
    packages: PACKAGES,
    excluded: EXCLUDED,
    before_packages: Some(NO_CLUSTER),
};

pub(super) fn recipe() -> Result<Recipe> {
    Ok(Recipe {
        name: "applications",
        ingredients: DEBIAN.ingredients()?,
        layer,
        command: debian::COMMAND,
    })
}

fn layer(work: &Path) -> Result<PathBuf> {
    DEBIAN.layer(work)
}
