//! Podman and CRI-O: a file of our own among those that they read.

use anyhow::Result;

use super::{Change, NAME, Plan, read};
use crate::arguments::Install;

pub(super) fn podman(arguments: &Install, binary: &str) -> Result<Plan> {
    let path = "containers/containers.conf.d/50-casemate.conf";
    let runtime = match arguments.default {
        true => String::new(),
        false => format!("--runtime {NAME} "),
    };
    Ok(Plan {
        changes: vec![file(
            arguments,
            path,
            podman_file(binary, arguments.default),
        )?],
        next_step: None,
        example: format!("podman {runtime}run --rm --network none IMAGE uname -r"),
        remarks: Vec::new(),
    })
}

pub(super) fn crio(arguments: &Install, binary: &str) -> Result<Plan> {
    let path = "crio/crio.conf.d/50-casemate.conf";
    Ok(Plan {
        changes: vec![file(arguments, path, crio_file(binary, arguments.default))?],
        next_step: Some("systemctl restart crio"),
        example: format!("a RuntimeClass with the handler {NAME:?}, and runtimeClassName in a pod"),
        remarks: Vec::new(),
    })
}

fn file(arguments: &Install, path: &str, text: String) -> Result<Change> {
    let path = arguments.etc.join(path);
    Ok(Change::File {
        before: read(&path)?,
        after: (!arguments.undo).then_some(text),
        path,
    })
}

fn podman_file(binary: &str, default: bool) -> String {
    let engine = match default {
        true => format!("[engine]\nruntime = \"{NAME}\"\n\n"),
        false => String::new(),
    };
    format!(
        "# Written by `casemate install podman`.\n{engine}[engine.runtimes]\n{NAME} = [\"{binary}\"]\n"
    )
}

fn crio_file(binary: &str, default: bool) -> String {
    let runtime = match default {
        true => format!("[crio.runtime]\ndefault_runtime = \"{NAME}\"\n\n"),
        false => String::new(),
    };
    format!(
        "# Written by `casemate install crio`.\n{runtime}[crio.runtime.runtimes.{NAME}]\n\
         runtime_path = \"{binary}\"\nruntime_type = \"oci\"\nruntime_root = \"/run/casemate/crio\"\n\
         # Privileged is privileged in the virtual machine, which has no device of the host.\n\
         privileged_without_host_devices = true\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ins_name_this_program() {
        let binary = "/usr/local/bin/casemate";
        let podman = podman_file(binary, true);
        assert!(podman.contains("runtime = \"casemate\"\n"));
        assert!(podman.contains("casemate = [\"/usr/local/bin/casemate\"]\n"));
        let crio = crio_file(binary, false);
        assert!(crio.contains("[crio.runtime.runtimes.casemate]\n"));
        assert!(crio.contains("runtime_path = \"/usr/local/bin/casemate\"\n"));
        assert!(!crio.contains("default_runtime"));
        for text in [podman, crio, crio_file(binary, true)] {
            text.parse::<toml_edit::DocumentMut>().unwrap();
        }
    }
}
