//! What the request names, in the kernel's form (rtnetlink(7)).

use std::{collections::HashMap, net::IpAddr};

use casemate_linux::netlink::{
    Request, address_header, constants::*, neighbour_header, route_header,
};
use casemate_protocol::agent::{
    NetworkAddress, NetworkHop, NetworkNeighbour, NetworkRoute, NetworkRule,
};

/// The numbers of interfaces by their names.
type Numbers = HashMap<String, u32>;

pub(super) fn address(kind: u16, flags: u16, address: &NetworkAddress, index: u32) -> Request {
    let header = address_header(
        family(&address.address),
        address.prefix as u8,
        address.scope as u8,
        index,
    );
    let peer = match address.peer.as_slice() {
        [] => &address.address,
        _ => &address.peer,
    };
    let mut request = Request::new(kind, flags)
        .header(&header)
        .attribute(IFA_LOCAL, &address.address)
        .attribute(IFA_ADDRESS, peer);
    if !address.broadcast.is_empty() {
        request = request.attribute(IFA_BROADCAST, &address.broadcast);
    }
    if address.metric != 0 {
        request = request.number(IFA_RT_PRIORITY, address.metric);
    }
    // The host's interface has made sure that nobody else has the address.
    request.number(IFA_FLAGS, address.flags | IFA_F_NODAD)
}

/// Nothing when a hop names an interface that is not there.
pub(super) fn route(
    kind: u16,
    flags: u16,
    route: &NetworkRoute,
    numbers: &Numbers,
) -> Option<Request> {
    let header = route_header(
        route.family as u8,
        route.prefix as u8,
        route.tos as u8,
        [route.protocol as u8, route.scope as u8, route.kind as u8],
    );
    let mut request = Request::new(kind, flags);
    let [hop] = route.hops.as_slice() else {
        request = attributes(request.header(&header), route);
        if route.hops.is_empty() {
            return Some(request);
        }
        let indexes: Option<Vec<u32>> = route
            .hops
            .iter()
            .map(|hop| numbers.get(&hop.interface).copied())
            .collect();
        let hops = route.hops.iter().zip(indexes?);
        return Some(request.nested(RTA_MULTIPATH, |list| {
            hops.fold(list, |list, (hop, index)| {
                // struct rtnexthop behind its length: flags, weight, interface.
                let [a, b, c, d] = index.to_ne_bytes();
                let fields = [hop.flags as u8, hop.weight as u8, a, b, c, d];
                list.structure(&fields, |inside| gateway(inside, route, hop))
            })
        }));
    };
    let index = *numbers.get(&hop.interface)?;
    let mut header = header;
    // rtm_flags takes the hop's where there is only one.
    header[8..12].copy_from_slice(&hop.flags.to_ne_bytes());
    request = attributes(request.header(&header), route).number(RTA_OIF, index);
    Some(gateway(request, route, hop))
}

/// The same route with gateways that need not be within reach.
pub(super) fn on_link(route: &NetworkRoute) -> NetworkRoute {
    let mut route = route.clone();
    for hop in &mut route.hops {
        hop.flags |= RTNH_F_ONLINK;
    }
    route
}

fn attributes(mut request: Request, route: &NetworkRoute) -> Request {
    request = request.number(RTA_TABLE, route.table);
    if !route.destination.is_empty() {
        request = request.attribute(RTA_DST, &route.destination);
    }
    if route.metric != 0 {
        request = request.number(RTA_PRIORITY, route.metric);
    }
    if !route.preferred_source.is_empty() {
        request = request.attribute(RTA_PREFSRC, &route.preferred_source);
    }
    if !route.metrics.is_empty() {
        request = request.nested(RTA_METRICS, |inside| inside.header(&route.metrics));
    }
    request
}

/// A gateway of the other family goes by RTA_VIA: the family, then the address.
fn gateway(request: Request, route: &NetworkRoute, hop: &NetworkHop) -> Request {
    if hop.gateway.is_empty() {
        return request;
    }
    let own = family(&hop.gateway);
    if u32::from(own) == route.family {
        return request.attribute(RTA_GATEWAY, &hop.gateway);
    }
    let via = [&u16::from(own).to_ne_bytes(), hop.gateway.as_slice()].concat();
    request.attribute(RTA_VIA, &via)
}

pub(super) fn neighbour(
    kind: u16,
    flags: u16,
    neighbour: &NetworkNeighbour,
    numbers: &Numbers,
) -> Option<Request> {
    let index = *numbers.get(&neighbour.interface)?;
    let header = neighbour_header(family(&neighbour.address), index, NUD_PERMANENT);
    let request = Request::new(kind, flags)
        .header(&header)
        .attribute(NDA_DST, &neighbour.address)
        .attribute(NDA_LLADDR, &neighbour.mac);
    Some(request)
}

pub(super) fn rule(kind: u16, flags: u16, rule: &NetworkRule) -> Request {
    Request::new(kind, flags).header(&rule.rule)
}

/// An address for people.
pub(super) fn show(address: &NetworkAddress) -> String {
    format!("{}/{}", text(&address.address), address.prefix)
}

/// Where a route leads, for people.
pub(super) fn destination(route: &NetworkRoute) -> String {
    match route.destination.as_slice() {
        [] => "default".into(),
        bytes => format!("{}/{}", text(bytes), route.prefix),
    }
}

fn text(bytes: &[u8]) -> String {
    let four = bytes.try_into().map(|bytes: [u8; 4]| IpAddr::from(bytes));
    let any = four.or_else(|_| bytes.try_into().map(|bytes: [u8; 16]| IpAddr::from(bytes)));
    any.map_or_else(|_| format!("{bytes:?}"), |address| address.to_string())
}

fn family(address: &[u8]) -> u8 {
    match address.len() {
        4 => libc::AF_INET as u8,
        _ => libc::AF_INET6 as u8,
    }
}
