//! Kernel parameters.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Write,
};

use crate::error::{Doing, Result};

/// Writes parameters through the agent's /proc/sys. Those that belong to a
/// namespace are those of the calling process, whoever has mounted /proc.
pub(crate) fn write_all(parameters: &HashMap<String, String>) -> Result<()> {
    // In a fixed order, so that what fails always fails in the same way.
    for (name, value) in parameters.iter().collect::<BTreeMap<_, _>>() {
        write(name, value)?;
    }
    Ok(())
}

/// Writes one parameter ("net.ipv4.ip_forward").
pub(crate) fn write(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    File::options()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .doing(|| format!("write sysctl key {name}"))
}
