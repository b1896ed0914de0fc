//! An interface and a tap, connected by traffic control: what comes in on one
//! goes out on the other (tc-mirred(8)), before the host's own stack sees it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use casemate_linux::{
    namespace::within_network,
    netlink::{Netlink, Request, constants::*, link_header, traffic_header},
    tap,
};

use super::{
    Claim, Error, failed,
    inventory::{self, Interface},
};

/// Names of our taps begin like this; the number of their interface follows.
pub(super) const TAP: &str = "cmtap";

/// Preference of the filter that redirects, by which it is known again.
pub(super) const PREFERENCE: u16 = 0xca5e;

/// Makes a tap and connects it to the interface.
pub(super) fn connect(
    namespace: BorrowedFd<'_>,
    netlink: &mut Netlink,
    interface: &Interface,
) -> Result<OwnedFd, Error> {
    let name = tap_of(interface.index);
    let made = within_network(namespace, || {
        let tap = tap::create(&name)?;
        // No address of its own and no word to the guest. Without IPv6 there is
        // no such file.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        Ok(tap)
    });
    let tap = made.and_then(|made| made).map_err(failed(format!(
        "tap for {} ({})",
        interface.name,
        tap::DEVICE
    )))?;
    let what = format!("redirect of {}", interface.name);
    let links = inventory::links(netlink).map_err(failed(&what))?;
    let link = links.iter().find(|link| link.name == name);
    let index = link.map(|link| link.index);
    let index = index.ok_or_else(|| failed(&what)(io::ErrorKind::NotFound.into()))?;
    let up = Request::new(RTM_SETLINK, 0)
        .header(&link_header(index, IFF_UP, IFF_UP))
        .number(IFLA_MTU, interface.mtu);
    netlink
        .execute(up)
        .and_then(|()| netlink.execute(ingress(RTM_NEWQDISC, index)))
        .and_then(|()| netlink.execute(forward(index, interface.index)))
        .and_then(|()| occupy(netlink, interface.index))
        .and_then(|()| netlink.execute(forward(interface.index, index)))
        .map_err(failed(&what))?;
    Ok(tap)
}

/// Gives the interface its ingress qdisc. One of a sandbox that has died is
/// replaced: its tap is gone, or ours could not have its name.
fn occupy(netlink: &mut Netlink, interface: u32) -> io::Result<()> {
    match netlink.execute(ingress(RTM_NEWQDISC, interface)) {
        Err(error)
            if error.raw_os_error() == Some(libc::EEXIST) && is_ours(netlink, interface)? =>
        {
            netlink.execute(ingress(RTM_DELQDISC, interface))?;
            netlink.execute(ingress(RTM_NEWQDISC, interface))
        }
        other => other,
    }
}

/// Takes the redirect off an interface, if it is there still.
pub(super) fn disconnect(netlink: &mut Netlink, interface: u32) {
    if is_ours(netlink, interface).unwrap_or(false) {
        // It may go at any time with its interface.
        let _ = netlink.execute(ingress(RTM_DELQDISC, interface));
    }
}

/// Undoes what a sandbox has left on an interface. A namespace that is gone is
/// undone, and so is an interface that another sandbox has taken since.
///
/// # Errors
/// When the namespace is there and cannot be entered.
pub(crate) fn undo(path: &Path, (device, inode): (u64, u64), interface: u32) -> io::Result<()> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) != (device, inode) {
        return Ok(());
    }
    within_network(file.as_fd(), || {
        match Claim::here() {
            // Another sandbox has come.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(()),
            claimed => {
                let _claim = claimed?;
                disconnect(&mut Netlink::open()?, interface);
            }
        }
        Ok(())
    })?
}

pub(super) fn tap_of(interface: u32) -> String {
    format!("{TAP}{interface}")
}

fn ingress(kind: u16, interface: u32) -> Request {
    let flags = match kind {
        RTM_NEWQDISC => NLM_F_CREATE | NLM_F_EXCL,
        _ => 0,
    };
    Request::new(kind, flags)
        .header(&traffic_header(
            interface,
            TC_H_INGRESS_HANDLE,
            TC_H_INGRESS,
            0,
        ))
        .attribute(TCA_KIND, b"ingress\0")
}

/// A filter that matches everything and sends it out elsewhere.
fn forward(from: u32, to: u32) -> Request {
    Filter {
        preference: PREFERENCE,
        protocol: ETH_P_ALL,
        keys: &[ANYTHING],
        send: Some((TCA_EGRESS_REDIR, TC_ACT_STOLEN, to)),
    }
    .on(from)
}

/// A key that compares nothing.
const ANYTHING: Key = Key {
    offset: 0,
    mask: 0,
    value: 0,
};

/// What 32 bits of a packet must be, from the beginning of its network header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub(super) offset: u32,
    pub(super) mask: u32,
    pub(super) value: u32,
}

/// A filter on what comes in. The classifier is u32: every kernel has it.
pub(super) struct Filter<'a> {
    /// Lower ones are asked first. Each protocol needs one of its own.
    pub(super) preference: u16,
    pub(super) protocol: u16,
    /// All must fit.
    pub(super) keys: &'a [Key],
    /// How (TCA_EGRESS_*) and to which interface it is sent, and what becomes of
    /// it here (TC_ACT_*). Without this it is only let in.
    pub(super) send: Option<(u32, u32, u32)>,
}

impl Filter<'_> {
    /// The request that puts it on an interface.
    pub(super) fn on(&self, interface: u32) -> Request {
        let info = u32::from(self.preference) << 16 | u32::from(self.protocol.to_be());
        Request::new(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL)
            .header(&traffic_header(interface, 0, TC_H_INGRESS_HANDLE, info))
            .attribute(TCA_KIND, b"u32\0")
            .nested(TCA_OPTIONS, |options| {
                let options = options.attribute(TCA_U32_SEL, &self.selector());
                match self.send {
                    Some(send) => options.nested(TCA_U32_ACT, |list| mirred(list, send)),
                    None => options,
                }
            })
    }

    /// struct tc_u32_sel.
    fn selector(&self) -> Vec<u8> {
        let mut selector = vec![0; 16];
        selector[0] = TC_U32_TERMINAL;
        selector[2] = self.keys.len() as u8;
        for key in self.keys {
            selector.extend(key.mask.to_be_bytes());
            selector.extend(key.value.to_be_bytes());
            selector.extend(key.offset.to_ne_bytes());
            selector.extend(0_u32.to_ne_bytes());
        }
        selector
    }
}

fn mirred(list: Request, (how, verdict, to): (u32, u32, u32)) -> Request {
    // struct tc_mirred: index, capabilities, action, two counts; then what to do
    // and where.
    let mirred = [0, 0, verdict, 0, 0, how, to];
    let mirred: Vec<u8> = mirred.into_iter().flat_map(u32::to_ne_bytes).collect();
    list.nested(1, |action| {
        action
            .attribute(TCA_ACT_KIND, b"mirred\0")
            .nested(TCA_ACT_OPTIONS, |own| {
                own.attribute(TCA_MIRRED_PARMS, &mirred)
            })
    })
}

/// Whether the interface's ingress has a filter of ours.
fn is_ours(netlink: &mut Netlink, interface: u32) -> io::Result<bool> {
    let list = Request::new(RTM_GETTFILTER, 0).header(&traffic_header(
        interface,
        0,
        TC_H_INGRESS_HANDLE,
        0,
    ));
    let filters = match netlink.dump(&list) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
        other => other?,
    };
    let preference = |body: &[u8]| {
        let info = body.get(16..20)?.first_chunk()?;
        Some((u32::from_ne_bytes(*info) >> 16) as u16)
    };
    Ok(filters
        .iter()
        .any(|filter| preference(&filter.body) == Some(PREFERENCE)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn run(line: &str) -> String {
        let words: Vec<_> = line.split(' ').collect();
        let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn here() -> File {
        File::open("/proc/thread-self/ns/net").unwrap()
    }

    fn veth(netlink: &mut Netlink) -> Interface {
        run("ip link add eth0 type veth peer name peer0");
        run("ip link set eth0 up");
        let found = inventory::read(netlink, inventory::Down::Any);
        let found = found.unwrap().interfaces;
        found.into_iter().find(|one| one.name == "eth0").unwrap()
    }

    fn ingress_of(interface: &str) -> String {
        let mut list = run(&format!("tc qdisc show dev {interface} ingress"));
        if !list.is_empty() {
            list += &run(&format!("tc filter show dev {interface} ingress"));
        }
        list
    }

    fn alone(work: impl FnOnce() + Send) {
        if !nix::unistd::geteuid().is_root() || !Path::new(tap::DEVICE).exists() {
            return println!("skipped: needs root and {}", tap::DEVICE);
        }
        casemate_linux::namespace::within_new_network(work).unwrap();
    }

    #[test]
    fn an_interface_is_connected_both_ways_until_it_is_let_go() {
        alone(|| {
            let mut netlink = Netlink::open().unwrap();
            let interface = veth(&mut netlink);
            let tap = connect(here().as_fd(), &mut netlink, &interface).unwrap();
            let name = tap_of(interface.index);
            let to_tap = format!("Egress Redirect to device {name}");
            assert!(
                ingress_of("eth0").contains(&to_tap),
                "{}",
                ingress_of("eth0")
            );
            assert!(ingress_of(&name).contains("Egress Redirect to device eth0"));
            let twice = connect(here().as_fd(), &mut netlink, &interface).unwrap_err();
            assert!(
                twice.to_string().starts_with("network: tap for eth0"),
                "{twice}"
            );
            drop(tap);
            disconnect(&mut netlink, interface.index);
            assert_eq!(ingress_of("eth0"), "");
            assert!(!run("ip -o link").contains(TAP));
            disconnect(&mut netlink, 99);
        });
    }

    #[test]
    fn what_a_dead_sandbox_left_is_undone_or_replaced() {
        alone(|| {
            let mut netlink = Netlink::open().unwrap();
            let interface = veth(&mut netlink);
            let link = format!(
                "/proc/{}/task/{}/ns/net",
                std::process::id(),
                nix::unistd::gettid()
            );
            let path = Path::new(&link);
            let found = fs::metadata(path).unwrap();
            let key = (found.dev(), found.ino());
            drop(connect(here().as_fd(), &mut netlink, &interface).unwrap());
            assert_ne!(ingress_of("eth0"), "");
            // Another sandbox has come: its redirect stays.
            let claim = Claim::here().unwrap();
            drop(connect(here().as_fd(), &mut netlink, &interface).unwrap());
            undo(path, key, interface.index).unwrap();
            assert_ne!(ingress_of("eth0"), "");
            drop(claim);
            undo(path, (key.0, key.1 + 1), interface.index).unwrap();
            assert_ne!(ingress_of("eth0"), "", "another namespace was meant");
            undo(path, key, interface.index).unwrap();
            assert_eq!(ingress_of("eth0"), "");
        });
    }

    #[test]
    fn a_qdisc_of_somebody_else_is_left_alone() {
        alone(|| {
            let mut netlink = Netlink::open().unwrap();
            let interface = veth(&mut netlink);
            run("tc qdisc add dev eth0 ingress");
            let error = connect(here().as_fd(), &mut netlink, &interface).unwrap_err();
            assert!(error.to_string().contains("redirect of eth0"), "{error}");
            disconnect(&mut netlink, interface.index);
            assert_ne!(ingress_of("eth0"), "");
        });
    }
}
