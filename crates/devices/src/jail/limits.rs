//! Resource limits.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Error, failed};

/// Descriptors enough for a large file tree; the file server holds one for each
/// file the guest knows.
const WANTED: u64 = 1 << 20;

/// Raises the limit on open files as far as it goes and says how far that is.
/// No core dumps either: they would hold the guest's memory.
///
/// # Errors
/// None known.
pub fn raise_descriptor_limit() -> Result<u64, Error> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("forbid core dumps"))?;
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(failed("read the limit on open files"))?;
    // Beyond the hard limit only with CAP_SYS_RESOURCE, and never beyond nr_open.
    let ceiling = fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(WANTED);
    let wanted = WANTED.min(ceiling).max(hard);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
        return Ok(wanted);
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .map_err(failed("raise the limit on open files"))?;
    Ok(hard)
}
