//! What the agent accepts from a request before it does anything. The host is
//! trusted; this is for clear errors and bounded work.

use std::path::{Component, Path};

use casemate_linux::seccomp::{INSTRUCTION, MAX_INSTRUCTIONS};
use casemate_protocol::{
    MAX_ID,
    agent::{ContainerSpec, IdMapping, Mount, PrepareSandboxRequest, Process, namespace::Kind},
};

use crate::{
    cgroup,
    error::{Error, Result},
};

/// Containers of one sandbox at the same time.
pub(crate) const CONTAINERS: usize = 1024;
/// Processes added to one container and not removed yet.
pub(crate) const PROCESSES: usize = 4096;
/// Lengths of lists in a request.
const MOUNTS: usize = 4096;
const PATHS: usize = 4096;
const DEVICES: usize = 4096;
const GROUPS: usize = 65536;
const HOOKS: usize = 64;
/// The kernel's own limit on lines of a uid_map (user_namespaces(7)).
const MAPPINGS: usize = 340;
/// VIRTIO_BLK_ID_BYTES.
const SERIAL: usize = 20;
const ENTROPY: usize = casemate_linux::entropy::MAX;
/// SECCOMP_FILTER_FLAG_* that have a meaning here: TSYNC, LOG, SPEC_ALLOW,
/// WAIT_KILLABLE_RECV. A listener would have nobody to listen.
const SECCOMP_FLAGS: u32 = 0b1 | 0b10 | 0b100 | 0b10_0000;

/// An id becomes part of file names and keyring names.
pub(crate) fn id(kind: &'static str, id: &str) -> Result<()> {
    if id.len() > MAX_ID {
        return Err(Error::Limit {
            what: kind,
            count: id.len(),
            most: MAX_ID,
        });
    }
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    if id.is_empty() || id == "." || id == ".." || !id.bytes().all(known) {
        return Err(Error::invalid(
            format!("{kind} {id:?}"),
            "must be made of letters, digits and _ . + -",
        ));
    }
    Ok(())
}

/// As machine-id(5) has it.
fn machine_id(id: &str) -> Result<()> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match id.len() == 32 && id.bytes().all(digit) {
        true => Ok(()),
        false => Err(Error::invalid(
            format!("machine id {id:?}"),
            "must be 32 lower-case hexadecimal digits",
        )),
    }
}

/// Checks PrepareSandbox.
pub(crate) fn prepare(request: &PrepareSandboxRequest) -> Result<()> {
    id("sandbox id", &request.sandbox_id)?;
    count("bytes of entropy", request.entropy.len(), ENTROPY)?;
    if !request.machine_id.is_empty() {
        machine_id(&request.machine_id)?;
    }
    count("mounts", request.mounts.len(), MOUNTS)?;
    request.mounts.iter().try_for_each(mount)?;
    request.sysctls.keys().try_for_each(|name| sysctl(name))
}

/// Checks a container's specification.
pub(crate) fn container(spec: &ContainerSpec) -> Result<()> {
    match spec.pause {
        true => pause(spec)?,
        false => {
            process(&spec.process)?;
            root(spec)?;
        }
    }
    count("mounts", spec.mounts.len(), MOUNTS)?;
    spec.mounts.iter().try_for_each(mount)?;
    count("masked paths", spec.masked_paths.len(), PATHS)?;
    count("readonly paths", spec.readonly_paths.len(), PATHS)?;
    for path in spec.masked_paths.iter().chain(&spec.readonly_paths) {
        absolute("masked or readonly path", path)?;
    }
    count("devices", spec.devices.len(), DEVICES)?;
    for device in &spec.devices {
        absolute("device", &device.path)?;
    }
    spec.sysctls.keys().try_for_each(|name| sysctl(name))?;
    count("hooks", spec.start_hooks.len(), HOOKS)?;
    for hook in &spec.start_hooks {
        absolute("hook", &hook.path)?;
    }
    mappings("uid mappings", &spec.uid_mappings)?;
    mappings("gid mappings", &spec.gid_mappings)?;
    namespaces(spec)?;
    cgroup::validate(&spec.cgroup)
}

/// Checks that a container without a program has nothing that needs one.
fn pause(spec: &ContainerSpec) -> Result<()> {
    let given = [
        ("args", !spec.process.args.is_empty()),
        ("terminal", spec.process.terminal),
        ("rootfs", !spec.rootfs.is_empty() || spec.disk.is_some()),
        ("hooks", !spec.start_hooks.is_empty()),
        (
            "mounts",
            spec.mounts.iter().any(|mount| mount.shared.is_empty()),
        ),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((what, _)) => Err(Error::invalid(
            what,
            "a pod's sandbox container must have none",
        )),
        None => Ok(()),
    }
}

/// Checks where the root file system is said to be.
fn root(spec: &ContainerSpec) -> Result<()> {
    let Some(disk) = spec.disk.as_ref() else {
        return absolute("rootfs", &spec.rootfs);
    };
    if !spec.rootfs.is_empty() {
        return Err(Error::invalid("rootfs", "is given beside a disk"));
    }
    // It becomes the name of a folder.
    id("disk", &disk.serial)?;
    count("bytes of a disk's serial", disk.serial.len(), SERIAL)?;
    [&disk.fstype, &disk.data]
        .into_iter()
        .try_for_each(|text| no_zero("disk", text))
}

/// Checks a process.
pub(crate) fn process(process: &Process) -> Result<()> {
    if process.args.is_empty() {
        return Err(Error::invalid("args", "must not be empty"));
    }
    if !process.cwd.starts_with('/') {
        return Err(Error::invalid("Cwd", "must be an absolute path"));
    }
    for variable in &process.env {
        // In runc's words, which clients have seen.
        if !variable.contains('=') {
            return Err(Error::invalid(
                "invalid environment variable",
                format!("{variable:?}"),
            ));
        }
    }
    let texts = process
        .args
        .iter()
        .chain(&process.env)
        .chain([&process.cwd]);
    for text in texts {
        no_zero("args, env and cwd", text)?;
    }
    count("additional groups", process.additional_gids.len(), GROUPS)?;
    let seccomp = &process.seccomp;
    count(
        "bytes of seccomp filter",
        seccomp.program.len(),
        MAX_INSTRUCTIONS * INSTRUCTION,
    )?;
    if !seccomp.program.len().is_multiple_of(INSTRUCTION) {
        return Err(Error::invalid(
            "seccomp filter",
            "is cut within an instruction",
        ));
    }
    if seccomp.flags & !SECCOMP_FLAGS != 0 {
        return Err(Error::invalid(
            format!("seccomp flags {:#x}", seccomp.flags),
            "have a flag that the agent does not support",
        ));
    }
    Ok(())
}

/// A signal's number.
pub(crate) fn signal(number: u32) -> Result<i32> {
    match i32::try_from(number) {
        Ok(signal @ 0..=64) => Ok(signal),
        _ => Err(Error::invalid(format!("signal {number}"), "is not known")),
    }
}

/// Columns and rows of a terminal.
pub(crate) fn size(columns: u32, rows: u32) -> Result<(u16, u16)> {
    match (u16::try_from(columns), u16::try_from(rows)) {
        (Ok(columns), Ok(rows)) => Ok((columns, rows)),
        _ => Err(Error::invalid(
            format!("terminal size {columns} x {rows}"),
            "is too large",
        )),
    }
}

fn mount(mount: &Mount) -> Result<()> {
    absolute("mount destination", &mount.destination)?;
    let has_name = Path::new(&mount.destination)
        .components()
        .any(|part| matches!(part, Component::Normal(_)));
    if !has_name {
        return Err(Error::invalid("mount destination", "must not be the root"));
    }
    for text in [&mount.source, &mount.fstype, &mount.data] {
        no_zero("mount", text)?;
    }
    if !mount.shared.is_empty() && mount.fstype != "tmpfs" {
        return Err(Error::invalid("mount", "only a tmpfs can be shared"));
    }
    if is_bind(mount) {
        absolute("source of a bind mount", &mount.source)?;
    }
    Ok(())
}

/// A bind mount goes by its type or by its flag.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    mount.fstype == "bind" || mount.flags & libc::MS_BIND != 0
}

fn namespaces(spec: &ContainerSpec) -> Result<()> {
    let mut seen = Vec::new();
    for namespace in &spec.namespaces {
        let kind = namespace
            .kind
            .enum_value()
            .map_err(|number| Error::invalid(format!("namespace kind {number}"), "is not known"))?;
        if seen.contains(&kind) {
            return Err(Error::invalid(
                format!("namespace {kind:?}"),
                "is given twice",
            ));
        }
        seen.push(kind);
        if kind == Kind::MOUNT && !namespace.of_container.is_empty() {
            return Err(Error::invalid(
                "mount namespace",
                "of another container cannot be joined: a container has a root of its own",
            ));
        }
        let new_user = kind == Kind::USER && namespace.of_container.is_empty();
        if new_user && (spec.uid_mappings.is_empty() || spec.gid_mappings.is_empty()) {
            return Err(Error::invalid(
                "user namespace",
                "needs uid and gid mappings",
            ));
        }
    }
    if !seen.contains(&Kind::MOUNT) {
        return Err(Error::invalid("namespaces", "a mount namespace is needed"));
    }
    Ok(())
}

fn mappings(what: &'static str, mappings: &[IdMapping]) -> Result<()> {
    count(what, mappings.len(), MAPPINGS)
}

fn absolute(what: &str, path: &str) -> Result<()> {
    no_zero(what, path)?;
    if path.starts_with('/') {
        return Ok(());
    }
    Err(Error::invalid(
        format!("{what} {path:?}"),
        "must be an absolute path",
    ))
}

/// "net.ipv4.ip_forward", as a path below /proc/sys without ways out.
fn sysctl(name: &str) -> Result<()> {
    no_zero("sysctl", name)?;
    let plain = name.split(['.', '/']).all(|part| !part.is_empty());
    if plain {
        return Ok(());
    }
    Err(Error::invalid(
        format!("sysctl {name:?}"),
        "is not the name of a kernel parameter",
    ))
}

fn no_zero(what: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::invalid(what, "must not contain a zero byte"));
    }
    Ok(())
}

pub(crate) fn count(what: &'static str, count: usize, most: usize) -> Result<()> {
    if count > most {
        return Err(Error::Limit { what, count, most });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_names() {
        assert!(id("container id", "web_1.2+x-y").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0"] {
            assert!(id("container id", bad).is_err(), "{bad:?}");
        }
        assert!(id("container id", &"x".repeat(MAX_ID)).is_ok());
        assert!(id("container id", &"x".repeat(MAX_ID + 1)).is_err());
    }

    #[test]
    fn kernel_parameters_stay_below_proc_sys() {
        assert!(sysctl("net.ipv4.conf.eth0/100.forwarding").is_ok());
        for bad in ["", "..", "kernel..", "/kernel", "net.ipv4/../../x", "a."] {
            assert!(sysctl(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_process_is_checked() {
        let good = Process {
            args: vec!["true".into()],
            cwd: "/".into(),
            ..Process::default()
        };
        assert!(process(&good).is_ok());
        let broken: [fn(&mut Process); 6] = [
            |process| process.args.clear(),
            |process| process.cwd = "etc".into(),
            |process| process.env = vec!["PATH".into()],
            |process| process.args.push("a\0b".into()),
            |process| process.seccomp.mut_or_insert_default().program = vec![0; 12],
            |process| process.seccomp.mut_or_insert_default().flags = 1 << 3,
        ];
        for (n, spoil) in broken.iter().enumerate() {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert!(super::process(&bad).is_err(), "case {n}");
        }
    }

    #[test]
    fn a_root_is_in_one_place() {
        let disk = |serial: &str, fstype: &str| ContainerSpec {
            disk: Some(casemate_protocol::agent::Disk {
                serial: serial.into(),
                fstype: fstype.into(),
                ..Default::default()
            })
            .into(),
            ..ContainerSpec::default()
        };
        let folder = ContainerSpec {
            rootfs: "/run/x".into(),
            ..ContainerSpec::default()
        };
        assert!(root(&folder).is_ok() && root(&disk("a1", "ext4")).is_ok());
        let both = ContainerSpec {
            rootfs: "/run/x".into(),
            ..disk("a1", "ext4")
        };
        let long = "x".repeat(SERIAL + 1);
        let bad = [
            ContainerSpec::default(),
            both,
            disk("..", "ext4"),
            disk(&long, "ext4"),
            disk("a1", "ext4\0"),
        ];
        for (n, spec) in bad.iter().enumerate() {
            assert!(root(spec).is_err(), "case {n}");
        }
    }
}
