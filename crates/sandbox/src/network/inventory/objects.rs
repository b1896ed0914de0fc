//! Addresses, routes, neighbours and rules as the kernel lists them, in the form
//! that the agent makes them from.

use std::collections::HashMap;

use casemate_linux::netlink::{
    ADDRESS_HEADER, Message, NEIGHBOUR_HEADER, ROUTE_HEADER, RULE_HEADER, attributes, constants::*,
};
use casemate_protocol::agent::{
    NetworkAddress, NetworkHop, NetworkNeighbour, NetworkRoute, NetworkRule,
};

/// An address, with the interface it belongs to.
pub(super) fn address(message: &Message) -> Option<(u32, NetworkAddress)> {
    let &[family, prefix, flags, scope, a, b, c, d] = message.body.first_chunk()?;
    let mut address = NetworkAddress {
        prefix: prefix.into(),
        scope: scope.into(),
        flags: flags.into(),
        ..NetworkAddress::default()
    };
    let mut other = Vec::new();
    for (kind, payload) in message.attributes(ADDRESS_HEADER) {
        match kind {
            IFA_LOCAL => address.address = payload.to_owned(),
            IFA_ADDRESS => other = payload.to_owned(),
            IFA_BROADCAST => address.broadcast = payload.to_owned(),
            IFA_FLAGS => address.flags = number(payload),
            IFA_RT_PRIORITY => address.metric = number(payload),
            _ => {}
        }
    }
    let permanent = address.flags & IFA_F_PERMANENT != 0;
    if i32::from(family) == libc::AF_INET6 && !permanent {
        // Learned from a router, whom the guest hears for itself.
        return None;
    }
    if address.address.is_empty() {
        address.address = other;
    } else if other != address.address {
        address.peer = other;
    }
    address.flags &= IFA_F_NODAD | IFA_F_NOPREFIXROUTE;
    let known = !address.address.is_empty();
    known.then_some((u32::from_ne_bytes([a, b, c, d]), address))
}

/// A route that somebody has set. Those of the kernel come with the addresses,
/// and those learned from routers the guest learns for itself.
pub(super) fn route(message: &Message, names: &HashMap<u32, String>) -> Option<NetworkRoute> {
    let &[family, prefix, _, tos, table, protocol, scope, kind] = message.body.first_chunk()?;
    let flags = u32::from_ne_bytes(*message.body.get(8..)?.first_chunk()?);
    let mut route = NetworkRoute {
        family: family.into(),
        prefix: prefix.into(),
        tos: tos.into(),
        table: table.into(),
        protocol: protocol.into(),
        scope: scope.into(),
        kind: kind.into(),
        ..NetworkRoute::default()
    };
    let mut only = NetworkHop {
        flags: flags & RTNH_F_PERVASIVE_ONLINK,
        ..NetworkHop::default()
    };
    let mut interface = None;
    let mut known = true;
    for (kind, payload) in message.attributes(ROUTE_HEADER) {
        match kind {
            RTA_DST => route.destination = payload.to_owned(),
            RTA_TABLE => route.table = number(payload),
            RTA_PRIORITY => route.metric = number(payload),
            RTA_PREFSRC => route.preferred_source = payload.to_owned(),
            RTA_METRICS => route.metrics = payload.to_owned(),
            RTA_OIF => interface = Some(number(payload)),
            RTA_GATEWAY => only.gateway = payload.to_owned(),
            RTA_VIA => only.gateway = payload.get(2..).unwrap_or_default().to_owned(),
            RTA_MULTIPATH => match hops(payload, names) {
                Some(hops) => route.hops = hops,
                None => known = false,
            },
            _ => {}
        }
    }
    let leads = kind == RTN_UNICAST;
    if leads && route.hops.is_empty() {
        only.interface = names.get(&interface?)?.clone();
        route.hops.push(only);
    }
    let leads_nowhere = [RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW].contains(&kind);
    let set = ![RTPROT_KERNEL, RTPROT_REDIRECT, RTPROT_RA].contains(&protocol);
    let own = flags & RTM_F_CLONED == 0 && route.table != RT_TABLE_LOCAL;
    let ip = [libc::AF_INET, libc::AF_INET6].contains(&i32::from(family));
    ((leads || leads_nowhere) && set && own && ip && known).then_some(route)
}

/// `struct rtnexthop` one after the other: length, flags, weight, interface,
/// attributes. Nothing when one leads through another interface.
fn hops(mut bytes: &[u8], names: &HashMap<u32, String>) -> Option<Vec<NetworkHop>> {
    let mut hops = Vec::new();
    while let Some(&[a, b, flags, weight, c, d, e, f]) = bytes.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let mut hop = NetworkHop {
            interface: names.get(&u32::from_ne_bytes([c, d, e, f]))?.clone(),
            flags: u32::from(flags) & RTNH_F_PERVASIVE_ONLINK,
            weight: weight.into(),
            ..NetworkHop::default()
        };
        for (kind, payload) in attributes(bytes.get(8..length)?) {
            match kind {
                RTA_GATEWAY => hop.gateway = payload.to_owned(),
                RTA_VIA => hop.gateway = payload.get(2..)?.to_owned(),
                _ => {}
            }
        }
        hops.push(hop);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(hops)
}

/// A neighbour that somebody has set.
pub(super) fn neighbour(
    message: &Message,
    names: &HashMap<u32, String>,
) -> Option<NetworkNeighbour> {
    let family = i32::from(*message.body.first()?);
    let index = u32::from_ne_bytes(*message.body.get(4..)?.first_chunk()?);
    let state = u16::from_ne_bytes(*message.body.get(8..)?.first_chunk()?);
    let of = |wanted| {
        let mut list = message.attributes(NEIGHBOUR_HEADER);
        list.find(|(kind, _)| *kind == wanted)
            .map(|(_, payload)| payload.to_owned())
    };
    let ip = [libc::AF_INET, libc::AF_INET6].contains(&family);
    let permanent = state & NUD_PERMANENT != 0;
    let neighbour = NetworkNeighbour {
        interface: names.get(&index)?.clone(),
        address: of(NDA_DST)?,
        mac: of(NDA_LLADDR)?,
        ..NetworkNeighbour::default()
    };
    (ip && permanent).then_some(neighbour)
}

/// A policy rule other than the three that every namespace has.
pub(super) fn rule(message: &Message) -> Option<NetworkRule> {
    let &[family, destination, source, tos, table, _, _, _] = message.body.first_chunk()?;
    let ip = [libc::AF_INET, libc::AF_INET6].contains(&i32::from(family));
    let mut priority = 0;
    for (kind, payload) in message.attributes(RULE_HEADER) {
        if kind == FRA_PRIORITY {
            priority = number(payload);
        }
    }
    let plain = destination == 0 && source == 0 && tos == 0;
    let born = [(0, 255), (32766, 254), (32767, 253)].contains(&(priority, table));
    (ip && !(plain && born)).then(|| NetworkRule {
        rule: message.body.clone(),
        ..NetworkRule::default()
    })
}

pub(super) fn number(payload: &[u8]) -> u32 {
    payload
        .first_chunk()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

pub(super) fn text(payload: &[u8]) -> String {
    let text = payload.strip_suffix(b"\0").unwrap_or(payload);
    String::from_utf8_lossy(text).into_owned()
}
