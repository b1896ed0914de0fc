//! Ports that the host's side of the namespace has for itself.
//!
//! A name server in the namespace asks others over the same interfaces that are
//! redirected to the guest; what they answer must come back to it. So where
//! there is one, a few local ports are the host's: the kernel chooses from them
//! for sockets of the namespace (`ip_local_port_range`), and filters before the
//! redirect let in what comes to them. They lie above the range from which the
//! guest's kernel chooses. Answers of address resolution go to both sides, which
//! have the same addresses; questions go to the guest alone.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use casemate_linux::{
    namespace::within_network,
    netlink::{Netlink, constants::*},
};

use super::{
    Claim, Error, failed,
    inventory::{self, Interface},
    redirect::{Filter, Key, PREFERENCE, tap_of},
};
use crate::ledger::{Ledger, Resource};

/// The first port; it and the number of ports are such that one mask tells them.
const FIRST: u16 = 61056;
const COUNT: u16 = 128;

/// Where the kernel is told of them.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Protocol numbers.
const TCP: u32 = 6;
const UDP: u32 = 17;
const ICMPV6: u32 = 58;

/// Gives the ports to the sockets of the namespace.
///
/// # Errors
/// When they cannot be set.
pub(super) fn reserve(path: &Path, namespace: &File, ledger: &mut Ledger) -> Result<(), Error> {
    let what = || failed(RANGE);
    let found = namespace.metadata().map_err(what())?;
    let range = within_network(namespace.as_fd(), || fs::read_to_string(RANGE));
    let before = range.and_then(|range| range).map_err(what())?;
    ledger.record(&Resource::LocalPorts {
        namespace: path.to_owned(),
        device: found.dev(),
        inode: found.ino(),
        before: before.trim().to_owned(),
    })?;
    let wanted = format!("{FIRST} {}", FIRST + COUNT - 1);
    let set = within_network(namespace.as_fd(), || fs::write(RANGE, wanted));
    set.and_then(|set| set).map_err(what())
}

/// Gives the namespace its old range back; see [`super::redirect::undo`].
///
/// # Errors
/// When the namespace is there and cannot be entered.
pub(crate) fn undo(path: &Path, (device, inode): (u64, u64), before: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) != (device, inode) {
        return Ok(());
    }
    within_network(file.as_fd(), || match Claim::here() {
        // Another sandbox has come.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
        claimed => claimed.and_then(|_claim| fs::write(RANGE, before)),
    })?
}

/// Lets in what comes to these ports of an interface that is redirected.
///
/// # Errors
/// When the kernel has no such filters.
pub(super) fn let_in(netlink: &mut Netlink, interface: &Interface) -> Result<(), Error> {
    let what = || failed(format!("ports of the host at {}", interface.name));
    let links = inventory::links(netlink).map_err(what())?;
    let name = tap_of(interface.index);
    let tap = links.iter().find(|link| link.name == name);
    let tap = tap
        .ok_or_else(|| what()(io::ErrorKind::NotFound.into()))?
        .index;
    // To the guest, and in.
    let both = Some((TCA_EGRESS_MIRROR, TC_ACT_OK, tap));
    let filters: [(u16, u16, &[Key], _); 6] = [
        (3, ETH_P_ARP, &arp_answer(), both),
        (2, ETH_P_IP, &ipv4_to_ours(UDP), None),
        (2, ETH_P_IP, &ipv4_to_ours(TCP), None),
        (1, ETH_P_IPV6, &ipv6_to_ours(UDP), None),
        (1, ETH_P_IPV6, &ipv6_to_ours(TCP), None),
        (1, ETH_P_IPV6, &neighbour_advertisement(), both),
    ];
    for (before, protocol, keys, send) in filters {
        let filter = Filter {
            preference: PREFERENCE - before,
            protocol,
            keys,
            send,
        };
        netlink
            .execute(filter.on(interface.index))
            .map_err(what())?;
    }
    Ok(())
}

fn key(offset: u32, mask: u32, value: u32) -> Key {
    Key {
        offset,
        mask,
        value,
    }
}

/// The lower half of the word: the destination port of UDP and TCP.
fn our_port(offset: u32) -> Key {
    key(offset, u32::from(!(COUNT - 1)), FIRST.into())
}

/// A header without options, and no later fragment, which has no ports.
fn ipv4_to_ours(protocol: u32) -> [Key; 4] {
    [
        key(0, 0xff00_0000, 0x4500_0000),
        key(4, 0x0000_1fff, 0),
        key(8, 0x00ff_0000, protocol << 16),
        our_port(20),
    ]
}

fn ipv6_to_ours(protocol: u32) -> [Key; 2] {
    [key(4, 0x0000_ff00, protocol << 8), our_port(40)]
}

/// RFC 826: an operation of 2.
fn arp_answer() -> [Key; 1] {
    [key(4, 0x0000_ffff, 2)]
}

/// RFC 4861, 4.4: an ICMPv6 message of type 136.
fn neighbour_advertisement() -> [Key; 2] {
    [
        key(4, 0x0000_ff00, ICMPV6 << 8),
        key(40, 0xff00_0000, 136 << 24),
    ]
}
