//! `linux.devices` and the rules of `linux.resources.devices`.
//!
//! A virtual machine has no host devices; what it has are the devices of its
//! own kernel. A wish for one of these (`/dev/fuse`, `/dev/net/tun`, …) is a
//! node of the guest's device. A wish for any other is refused, except where
//! the client lists every device of the host because the container may use
//! all of them: a privileged container is privileged in the guest, where the
//! host's disks do not exist, and the nodes that would lead nowhere are left
//! out.

use casemate_protocol::agent::{Device, DeviceRule, IdMapping, device::Kind};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::Error;
use super::namespaces::mapped;
use super::path::in_container;

const FIELD: &str = "linux.devices";
const RULES_FIELD: &str = "linux.resources.devices";

/// The character devices of the guest's kernel that a container may be given,
/// with the numbers that they have on every Linux (admin-guide/devices.txt).
const GUEST_DEVICES: &[(u32, u32, &str)] = &[
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
    (1, 11, "/dev/kmsg"),
    (5, 0, "/dev/tty"),
    (10, 200, "/dev/net/tun"),
    (10, 229, "/dev/fuse"),
    (10, 237, "/dev/loop-control"),
];

/// Those that every container has (runtime spec 1.2, "Default Devices").
/// `/dev/ptmx` and `/dev/console` are made by the agent together with the
/// pseudo terminals they lead to.
const DEFAULT_DEVICES: [(u32, u32); 6] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)];
const MADE_BY_AGENT: [&str; 2] = ["/dev/ptmx", "/dev/console"];

/// Where the guest's kernel makes this character device, if it has it.
pub(super) fn guest_device(major: u64, minor: u64) -> Option<&'static str> {
    let mut devices = GUEST_DEVICES.iter();
    let found = devices.find(|device| (device.0.into(), device.1.into()) == (major, minor));
    found.map(|device| device.2)
}

/// The nodes of a container: the default ones and those that are listed.
/// Without a user namespace, `uid_mapping` and `gid_mapping` are empty.
pub(super) fn nodes(
    listed: &[LinuxDevice],
    everything_allowed: bool,
    uid_mapping: &[IdMapping],
    gid_mapping: &[IdMapping],
    warnings: &mut Vec<String>,
) -> Result<Vec<Device>, Error> {
    let mut nodes: Vec<Device> = default_nodes();
    let mut left_out = 0;
    for device in listed {
        match node(device)? {
            Some(node) if MADE_BY_AGENT.contains(&node.path.as_str()) => {}
            Some(node) => {
                nodes.retain(|other| other.path != node.path);
                nodes.push(node);
            }
            None if everything_allowed => left_out += 1,
            None => return Err(refusal(device)),
        }
    }
    if left_out > 0 {
        let what = "host devices do not exist in the virtual machine and are left out";
        warnings.push(format!("{FIELD}: {left_out} {what}"));
    }
    if !uid_mapping.is_empty() {
        // As runc has it: in a user namespace every node is its root's.
        for node in &mut nodes {
            node.uid = mapped(uid_mapping, 0).unwrap_or(node.uid);
            node.gid = mapped(gid_mapping, 0).unwrap_or(node.gid);
        }
    }
    Ok(nodes)
}

fn default_nodes() -> Vec<Device> {
    let is_default = |major, minor| DEFAULT_DEVICES.contains(&(major, minor));
    GUEST_DEVICES
        .iter()
        .filter(|(major, minor, _)| is_default(*major, *minor))
        .map(|(major, minor, path)| Device {
            path: (*path).to_owned(),
            kind: Kind::CHAR.into(),
            major: *major,
            minor: *minor,
            mode: DEFAULT_MODE,
            ..Device::default()
        })
        .collect()
}

/// As runc has it; the runtime spec names none.
const DEFAULT_MODE: u32 = 0o666;

/// The guest's node for `device`, or nothing if the guest has no such device.
fn node(device: &LinuxDevice) -> Result<Option<Device>, Error> {
    let path = device.path().to_string_lossy();
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Error::invalid(FIELD, path, "is not an absolute path"));
    }
    let (kind, major, minor) = match device.typ() {
        LinuxDeviceType::P => (Kind::FIFO, 0, 0),
        LinuxDeviceType::C | LinuxDeviceType::U => {
            let numbers = (u32::try_from(device.major()), u32::try_from(device.minor()));
            match numbers {
                (Ok(major), Ok(minor)) if is_in_guest(&path, major, minor) => {
                    (Kind::CHAR, major, minor)
                }
                _ => return Ok(None),
            }
        }
        LinuxDeviceType::B => return Ok(None),
        LinuxDeviceType::A => return Err(Error::invalid(FIELD, "a", "is no type of a device")),
    };
    Ok(Some(Device {
        path: in_container(&path),
        kind: kind.into(),
        major,
        minor,
        mode: device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        ..Device::default()
    }))
}

fn is_in_guest(path: &str, major: u32, minor: u32) -> bool {
    guest_device(major.into(), minor.into()).is_some() || MADE_BY_AGENT.contains(&path)
}

fn refusal(device: &LinuxDevice) -> Error {
    let reason = format!(
        "{:?} ({} {}:{}) is a host device, which a virtual machine does not have",
        device.path(),
        device.typ().as_str(),
        device.major(),
        device.minor()
    );
    Error::unsupported(FIELD, reason)
}

/// The rules for the guest: the client's in order, then those for what every
/// container has. They start from nothing allowed, whatever the first one is.
pub(super) fn rules(listed: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, Error> {
    let mut rules = vec![rule(false, "a", None, None, "rwm")];
    for written in listed {
        let next = parse_rule(written)?;
        if rules.len() > 1 || next != rules[0] {
            rules.push(next);
        }
    }
    rules.extend(default_rules());
    Ok(rules)
}

/// What runc allows every container on top of its configuration: to make any
/// node, and to use the default devices and pseudo terminals.
fn default_rules() -> Vec<DeviceRule> {
    let mut rules = vec![
        rule(true, "c", None, None, "m"),
        rule(true, "b", None, None, "m"),
    ];
    for (major, minor) in DEFAULT_DEVICES {
        rules.push(rule(true, "c", Some(major), Some(minor), "rwm"));
    }
    const PTY_SLAVES: u32 = 136;
    const PTMX: (u32, u32) = (5, 2);
    rules.push(rule(true, "c", Some(PTY_SLAVES), None, "rwm"));
    rules.push(rule(true, "c", Some(PTMX.0), Some(PTMX.1), "rwm"));
    rules
}

fn parse_rule(written: &LinuxDeviceCgroup) -> Result<DeviceRule, Error> {
    let kind = match written.typ() {
        None | Some(LinuxDeviceType::A) => "a",
        Some(LinuxDeviceType::B) => "b",
        Some(LinuxDeviceType::C) => "c",
        Some(other) => {
            return Err(Error::invalid(
                RULES_FIELD,
                other.as_str(),
                "is no type of a rule",
            ));
        }
    };
    let access = written.access().as_deref().unwrap_or_default();
    if access.is_empty() || !access.chars().all(|letter| "rwm".contains(letter)) {
        return Err(Error::invalid(
            RULES_FIELD,
            access,
            "is not an access of r, w and m",
        ));
    }
    let (major, minor) = (number(written.major())?, number(written.minor())?);
    Ok(if kind == "a" {
        // A rule for all types is one for all numbers (cgroup v1, "devices").
        rule(written.allow(), kind, None, None, access)
    } else {
        rule(written.allow(), kind, major, minor, access)
    })
}

/// -1 is any number, as is none.
fn number(written: Option<i64>) -> Result<Option<u32>, Error> {
    match written {
        None | Some(-1) => Ok(None),
        Some(number) => match number.try_into() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::invalid(RULES_FIELD, number, "is no device number")),
        },
    }
}

fn rule(
    allow: bool,
    kind: &str,
    major: Option<u32>,
    minor: Option<u32>,
    access: &str,
) -> DeviceRule {
    DeviceRule {
        allow,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
        ..DeviceRule::default()
    }
}

/// Whether the rules end up allowing every device, as for a privileged
/// container.
pub(super) fn everything_allowed(rules: &[DeviceRule]) -> bool {
    let is_full = |rule: &&DeviceRule| {
        rule.kind == "a" && "rwm".chars().all(|letter| rule.access.contains(letter))
    };
    let last_full = rules.iter().rfind(is_full);
    last_full.is_some_and(|rule| rule.allow)
}
