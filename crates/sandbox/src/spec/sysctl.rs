//! `linux.sysctl`: the kernel parameters that belong to a namespace of the
//! container.
//!
//! The rule is runc's: others are refused, although the guest's kernel is the
//! sandbox's own, so that a configuration means the same with both.

use std::collections::HashMap;

use super::Error;

const FIELD: &str = "linux.sysctl";

/// Those of the IPC namespace besides `fs.mqueue.*` (ipc_namespaces(7)).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// The parameters for the guest, their names with dots between the parts.
pub(super) fn parameters(
    written: &HashMap<String, String>,
) -> Result<HashMap<String, String>, Error> {
    let mut parameters = HashMap::new();
    for (name, value) in written {
        let dotted = dotted(name);
        check(name, &dotted)?;
        if value.contains('\0') {
            return Err(Error::invalid(FIELD, value, "has a zero byte"));
        }
        if parameters.insert(dotted, value.clone()).is_some() {
            return Err(Error::invalid(FIELD, name, "is listed twice"));
        }
    }
    Ok(parameters)
}

fn check(written: &str, dotted: &str) -> Result<(), Error> {
    let parts_are_names = dotted
        .split('.')
        .all(|part| !matches!(part, "" | "/" | "//") && !part.contains('\0'));
    if !parts_are_names {
        return Err(Error::invalid(
            FIELD,
            written,
            "is no name of a kernel parameter",
        ));
    }
    if dotted == "kernel.hostname" {
        let reason = format!("{written:?} conflicts with the field hostname");
        return Err(Error::unsupported(FIELD, reason));
    }
    let namespaced = IPC.contains(&dotted)
        || dotted == "kernel.domainname"
        || dotted.starts_with("fs.mqueue.")
        || dotted.starts_with("net.");
    if namespaced {
        Ok(())
    } else {
        let reason = format!("{written:?} is not in a separate kernel namespace");
        Err(Error::unsupported(FIELD, reason))
    }
}

/// `name` with dots between its parts. One that is written with slashes, as
/// below /proc/sys, may have dots in a part; each becomes a slash, so that
/// `net/ipv4/conf/eth0.1/forwarding` is `net.ipv4.conf.eth0/1.forwarding`
/// (sysctl(8)).
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => name
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(name: &str) -> Result<String, String> {
        let written = HashMap::from([(name.to_owned(), "1".to_owned())]);
        match parameters(&written) {
            Ok(parameters) => Ok(parameters.into_keys().collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn namespaced_parameters_are_accepted() {
        let cases = [
            ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net.ipv4.conf.eth0/1.forwarding",
            ),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "net.ipv4.conf.eth0/1.forwarding",
            ),
            ("kernel/msgmax", "kernel.msgmax"),
            ("fs.mqueue.msg_max", "fs.mqueue.msg_max"),
            ("kernel.domainname", "kernel.domainname"),
        ];
        for (name, expected) in cases {
            assert_eq!(accept(name).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        let cases = [
            (
                "kernel.panic",
                "linux.sysctl: \"kernel.panic\" is not in a separate kernel namespace",
            ),
            (
                "vm/swappiness",
                "linux.sysctl: \"vm/swappiness\" is not in a separate kernel namespace",
            ),
            (
                "netx",
                "linux.sysctl: \"netx\" is not in a separate kernel namespace",
            ),
            (
                "kernel.hostname",
                "linux.sysctl: \"kernel.hostname\" conflicts with the field hostname",
            ),
            (
                "net.//.kernel",
                "linux.sysctl: \"net.//.kernel\" is no name of a kernel parameter",
            ),
            (
                "net/../kernel",
                "linux.sysctl: \"net/../kernel\" is no name of a kernel parameter",
            ),
            (
                "net..x",
                "linux.sysctl: \"net..x\" is no name of a kernel parameter",
            ),
            ("", "linux.sysctl: \"\" is no name of a kernel parameter"),
        ];
        for (name, expected) in cases {
            assert_eq!(accept(name).unwrap_err(), expected);
        }
    }

    #[test]
    fn one_parameter_under_two_names_is_refused() {
        let written = ["net.core.somaxconn", "net/core/somaxconn"];
        let written = written.map(|name| (name.to_owned(), "1".to_owned()));
        let error = parameters(&HashMap::from(written)).unwrap_err();
        assert!(error.to_string().ends_with("is listed twice"), "{error}");
    }
}
