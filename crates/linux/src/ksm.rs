//! Kernel samepage merging (Documentation/admin-guide/mm/ksm.rst): pages with the
//! same content become one that is copied when it is written.

use std::{fs, io};

use crate::check;

/// Whether the kernel's thread that looks for equal pages runs; see the file's
/// description in the kernel's documentation.
const RUN: &str = "/sys/kernel/mm/ksm/run";

/// Lets the kernel merge all memory of this process that is its own, and that of
/// the programs that it starts. Memory that is mapped shared is never merged.
///
/// # Errors
/// EINVAL where the kernel cannot: it has no KSM, or is older than Linux 6.4.
pub fn merge_process() -> io::Result<()> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: prctl with integers only.
    let result = unsafe { libc::prctl(libc::PR_SET_MEMORY_MERGE, on, unused, unused, unused) };
    check(i64::from(result)).map(drop)
}

/// Whether anything is being merged on this host.
///
/// # Errors
/// NotFound where the kernel has no KSM.
pub fn is_running() -> io::Result<bool> {
    Ok(fs::read_to_string(RUN)?.trim() == "1")
}
