//! What the agent accepts as a network.

use std::{collections::HashSet, net::Ipv4Addr};

use casemate_linux::netlink::RULE_HEADER;
use casemate_protocol::agent::{
    NetworkAddress, NetworkInterface, NetworkRoute, UpdateNetworkRequest,
};

use crate::{
    error::{Error, Result},
    limits::count,
};

const INTERFACES: usize = 64;
const ADDRESSES: usize = 256;
const ROUTES: usize = 4096;
const NEIGHBOURS: usize = 4096;
const RULES: usize = 512;
const HOPS: usize = 64;
const NAME_SERVERS: usize = 8;
/// Bytes of what the kernel reads for itself.
const OPAQUE: usize = 512;
/// Parameters of an interface that may be set. The first two are 1 at birth.
const IPV6: [&str; 3] = ["accept_ra", "autoconf", "disable_ipv6"];
/// IFNAMSIZ, less the zero byte.
const NAME: usize = 15;

/// Checks UpdateNetwork; gives its name servers.
pub(super) fn check(request: &UpdateNetworkRequest) -> Result<Vec<Ipv4Addr>> {
    count("interfaces", request.interfaces.len(), INTERFACES)?;
    let mut names = HashSet::new();
    let mut macs = HashSet::new();
    for one in &request.interfaces {
        interface(one)?;
        if !names.insert(one.name.as_str()) || !macs.insert(one.mac.as_slice()) {
            let what = format!("interface {:?}", one.name);
            return Err(Error::invalid(what, "has the name or MAC of another one"));
        }
    }
    count("routes", request.routes.len(), ROUTES)?;
    request
        .routes
        .iter()
        .try_for_each(|one| route(one, &names))?;
    count("neighbours", request.neighbours.len(), NEIGHBOURS)?;
    for one in &request.neighbours {
        known(&one.interface, &names)?;
        ip("neighbour", &one.address)?;
        count("bytes of a neighbour's MAC", one.mac.len(), 32)?;
    }
    count("rules", request.rules.len(), RULES)?;
    for one in &request.rules {
        count("bytes of a rule", one.rule.len(), OPAQUE)?;
        if one.rule.len() < RULE_HEADER {
            return Err(Error::invalid("rule", "is too short"));
        }
    }
    count("name servers", request.name_servers.len(), NAME_SERVERS)?;
    let servers = request.name_servers.iter();
    servers.map(|one| name_server(one)).collect()
}

fn name_server(bytes: &[u8]) -> Result<Ipv4Addr> {
    let address = <[u8; 4]>::try_from(bytes).map(Ipv4Addr::from);
    let address = address.ok().filter(Ipv4Addr::is_loopback);
    address.ok_or_else(|| Error::invalid("name server", "must be a loopback address of IPv4"))
}

fn interface(interface: &NetworkInterface) -> Result<()> {
    let name = &interface.name;
    let what = || format!("interface {name:?}");
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'/');
    let special = ["", ".", "..", "lo"].contains(&name.as_str());
    if name.len() > NAME || !plain || special {
        return Err(Error::invalid(what(), "is not a name for an interface"));
    }
    if interface.mac.len() != 6 {
        return Err(Error::invalid(what(), "must have a MAC of 6 bytes"));
    }
    if !(68..=65535).contains(&interface.mtu) {
        return Err(Error::invalid(
            what(),
            format!("has an MTU of {}", interface.mtu),
        ));
    }
    let known = |name: &String| IPV6.contains(&name.as_str());
    if !interface.ipv6.keys().all(known) {
        return Err(Error::invalid(what(), "has an unknown IPv6 parameter"));
    }
    count("addresses", interface.addresses.len(), ADDRESSES)?;
    interface.addresses.iter().try_for_each(address)
}

fn address(address: &NetworkAddress) -> Result<()> {
    ip("address", &address.address)?;
    prefix(address.prefix, &address.address)?;
    for other in [&address.peer, &address.broadcast] {
        if !other.is_empty() && other.len() != address.address.len() {
            return Err(Error::invalid("address", "has a peer of another family"));
        }
    }
    byte("scope", address.scope)
}

fn route(route: &NetworkRoute, names: &HashSet<&str>) -> Result<()> {
    let length = match route.family as i32 {
        libc::AF_INET => 4,
        libc::AF_INET6 => 16,
        _ => return Err(Error::invalid("route", "has an unknown family")),
    };
    for part in [&route.destination, &route.preferred_source] {
        if !part.is_empty() && part.len() != length {
            return Err(Error::invalid("route", "has an address of another family"));
        }
    }
    prefix(route.prefix, &route.destination)?;
    byte("type of service", route.tos)?;
    byte("protocol", route.protocol)?;
    byte("scope", route.scope)?;
    byte("kind of route", route.kind)?;
    count("bytes of metrics", route.metrics.len(), OPAQUE)?;
    count("hops", route.hops.len(), HOPS)?;
    for hop in &route.hops {
        known(&hop.interface, names)?;
        if !hop.gateway.is_empty() {
            ip("gateway", &hop.gateway)?;
        }
        byte("weight", hop.weight)?;
        byte("flags of a hop", hop.flags)?;
    }
    Ok(())
}

fn known(interface: &str, names: &HashSet<&str>) -> Result<()> {
    if names.contains(interface) {
        return Ok(());
    }
    Err(Error::invalid(
        format!("interface {interface:?}"),
        "is not one of the request",
    ))
}

fn ip(what: &str, bytes: &[u8]) -> Result<()> {
    match bytes.len() {
        4 | 16 => Ok(()),
        length => Err(Error::invalid(what, format!("has {length} bytes"))),
    }
}

fn prefix(prefix: u32, address: &[u8]) -> Result<()> {
    if prefix as usize <= 8 * address.len() {
        return Ok(());
    }
    Err(Error::invalid("prefix", format!("has {prefix} bits")))
}

fn byte(what: &str, number: u32) -> Result<()> {
    if u8::try_from(number).is_ok() {
        return Ok(());
    }
    Err(Error::invalid(what, format!("{number} is too large")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_protocol::agent::{NetworkHop, NetworkNeighbour, NetworkRule};

    fn network() -> UpdateNetworkRequest {
        UpdateNetworkRequest {
            interfaces: vec![NetworkInterface {
                mac: vec![2; 6],
                name: "eth0".into(),
                mtu: 1500,
                addresses: vec![NetworkAddress {
                    address: vec![10, 0, 0, 2],
                    prefix: 24,
                    ..Default::default()
                }],
                ..Default::default()
            }],
            routes: vec![NetworkRoute {
                family: libc::AF_INET as u32,
                hops: vec![NetworkHop {
                    interface: "eth0".into(),
                    gateway: vec![10, 0, 0, 1],
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_network_is_checked() {
        check(&network()).unwrap();
        let broken: [fn(&mut UpdateNetworkRequest); 16] = [
            |one| one.interfaces[0].ipv6 = [("../mtu".to_owned(), 1)].into(),
            |one| one.interfaces[0].name = "lo".into(),
            |one| one.interfaces[0].name = "a/b".into(),
            |one| one.interfaces[0].name = "x".repeat(16),
            |one| one.interfaces[0].mac = vec![1; 5],
            |one| one.interfaces[0].mtu = 0,
            |one| one.interfaces.push(one.interfaces[0].clone()),
            |one| one.interfaces[0].addresses[0].prefix = 33,
            |one| one.interfaces[0].addresses[0].address = vec![1; 5],
            |one| one.interfaces[0].addresses[0].peer = vec![0; 16],
            |one| one.routes[0].family = 7,
            |one| one.routes[0].destination = vec![0; 16],
            |one| one.routes[0].hops[0].interface = "eth1".into(),
            |one| one.routes[0].hops[0].weight = 256,
            |one| one.neighbours.push(NetworkNeighbour::default()),
            |one| one.rules.push(NetworkRule::default()),
        ];
        for (n, spoil) in broken.iter().enumerate() {
            let mut bad = network();
            spoil(&mut bad);
            assert!(check(&bad).is_err(), "case {n}");
        }
    }
}
